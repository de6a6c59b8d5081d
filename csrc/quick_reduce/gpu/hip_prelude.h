// The few words of HIP that the kernels use, for a clang without ROCm: given with -include together with -nogpuinc.
// A ROCm compiler defines them itself and never sees this file.
#pragma once

#if !defined(__HIP_DEVICE_COMPILE__)
#include <hip/hip_runtime_api.h>  // the host's side of a kernel calls hipLaunchKernel
#endif

#define __host__ __attribute__((host))
#define __device__ __attribute__((device))
#define __global__ __attribute__((global))
#define __shared__ __attribute__((shared))
#define __forceinline__ inline __attribute__((always_inline))

// (threads, waves): as in HIP, the second is the least number of waves on each SIMD, not of blocks as in CUDA.
#define QR_LAUNCH_BOUNDS_1(threads, waves, ...) \
    __attribute__((amdgpu_flat_work_group_size(1, threads), amdgpu_waves_per_eu(waves)))
#define QR_LAUNCH_BOUNDS(...) QR_LAUNCH_BOUNDS_1(__VA_ARGS__)
#define __launch_bounds__(...) QR_LAUNCH_BOUNDS(__VA_ARGS__, 1, 1)
