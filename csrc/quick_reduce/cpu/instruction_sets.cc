#include "kernel.h"

namespace splitrank::quick_reduce_cpu {

namespace {

constexpr InstructionSet kInstructionSets[] = {
    {"baseline", find_kernel_baseline},
    {"avx2", find_kernel_avx2},
    {"avx512", find_kernel_avx512},
};

// The features are exactly those that cmake/cpu.cmake compiles the kernels with.
int count_supported() {
    __builtin_cpu_init();
    if (!__builtin_cpu_supports("avx2")) return 1;
    const bool avx512 = __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
                        __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("avx512vl");
    return avx512 ? 3 : 2;
}

}  // namespace

const InstructionSet* begin_instruction_sets() { return kInstructionSets; }

const InstructionSet* end_instruction_sets() {
    static const int supported = count_supported();
    return kInstructionSets + supported;
}

}  // namespace splitrank::quick_reduce_cpu
