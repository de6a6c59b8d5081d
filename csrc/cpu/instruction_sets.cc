#include <stdexcept>
#include <string>

#include "kernels.h"

namespace splitrank::cpu {

extern const Kernels kernels_baseline;
#if defined(__x86_64__)
extern const Kernels kernels_avx2, kernels_avx512;
#endif

namespace {

const InstructionSet kInstructionSets[] = {
    {"baseline", &kernels_baseline},
#if defined(__x86_64__)
    {"avx2", &kernels_avx2},
    {"avx512", &kernels_avx512},
#endif
};

// The features are exactly those that cmake/cpu.cmake compiles the kernels with.
int count_supported() {
#if defined(__x86_64__)
    __builtin_cpu_init();
    if (!__builtin_cpu_supports("avx2") || !__builtin_cpu_supports("fma")) return 1;
    const bool avx512 = __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
                        __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("avx512vl");
    return avx512 ? 3 : 2;
#else
    return 1;
#endif
}

}  // namespace

const InstructionSet* begin_instruction_sets() { return kInstructionSets; }

const InstructionSet* end_instruction_sets() {
    static const int supported = count_supported();
    return kInstructionSets + supported;
}

const InstructionSet& find_instruction_set(const std::string& name) {
    if (name.empty()) return *(end_instruction_sets() - 1);
    for (auto* set = begin_instruction_sets(); set != end_instruction_sets(); ++set)
        if (name == set->name) return *set;
    throw std::invalid_argument("this machine has no instruction set " + name);
}

}  // namespace splitrank::cpu
