// What the host side knows of a kernel: a function to call. Kernels are compiled once an instruction set.
#pragma once

#include <cstdint>

namespace splitrank::quick_reduce_cpu {

// Runs a call on this thread. `view` and `call` point to a View and a Call; they are untyped because every instruction
// set has types of its own (kernels.inc says why), all with the same layout. False: see the failure record.
using Kernel = bool (*)(const void* view, const void* call);

// Codes as in ../call.h. Null: there is no such kernel.
using FindKernel = Kernel (*)(uint32_t dtype, uint32_t codec, uint32_t algorithm, uint32_t world_size);

Kernel find_kernel_baseline(uint32_t dtype, uint32_t codec, uint32_t algorithm, uint32_t world_size);
Kernel find_kernel_avx2(uint32_t dtype, uint32_t codec, uint32_t algorithm, uint32_t world_size);
Kernel find_kernel_avx512(uint32_t dtype, uint32_t codec, uint32_t algorithm, uint32_t world_size);

struct InstructionSet {
    const char* name;
    FindKernel find_kernel;
};

// Those that this machine can run, the best one last.
const InstructionSet* begin_instruction_sets();
const InstructionSet* end_instruction_sets();

}  // namespace splitrank::quick_reduce_cpu
