// Stands for gpu/executor.h in the copy of the headers that the interleaving program is built with, so that the
// kernels' own loop over tiles and slots (gpu/kernels.h) runs on fibres.
#pragma once

#include "fibre_executor.h"

#ifndef __global__
#define __global__
#define __launch_bounds__(threads)
#endif

namespace splitrank::quick_reduce {

namespace gpu {
inline uint32_t block_index() { return 0; }
inline void wait_for_previous() {}  // calls of a rank follow each other
}  // namespace gpu

template <int LaneElements, int Unroll>
class GpuExecutor;

}  // namespace splitrank::quick_reduce
