#include "runtime.h"

#if !defined(SPLITRANK_HIP)
#include <cuda.h>
#endif

namespace splitrank::quick_reduce_gpu {

#if defined(SPLITRANK_HIP)

Range allocation_of(const void* address) {
    hipDeviceptr_t base = nullptr;
    size_t num_bytes = 0;
    check(hipMemGetAddressRange(&base, &num_bytes, const_cast<void*>(address)), "the allocation of a tensor");
    return {base, num_bytes};
}

bool has_early_start(int) { return false; }

hipError_t launch(const void* kernel, uint32_t num_blocks, uint32_t num_threads, void** arguments, Stream stream, bool) {
    return hipLaunchKernel(kernel, dim3(num_blocks), dim3(num_threads), arguments, 0, stream);
}

void* allocate_exchange(size_t num_bytes) {
#if defined(hipDeviceMallocUncached)
    constexpr unsigned kFlag = hipDeviceMallocUncached;
#else  // older headers, of a ROCm where fine-grained memory is uncached
    constexpr unsigned kFlag = hipDeviceMallocFinegrained;
#endif
    void* memory = nullptr;
    check(hipExtMallocWithFlags(&memory, num_bytes, kFlag), "exchange memory of " + std::to_string(num_bytes) + " bytes");
    return memory;
}

void* allocate_pinned(size_t num_bytes) {
    void* memory = nullptr;
    check(hipHostMalloc(&memory, num_bytes, hipHostMallocMapped | hipHostMallocCoherent), "pinned memory");
    return memory;
}

void free_pinned(void* memory) { (void)hipHostFree(memory); }

#else

namespace {

using GetAddressRange = CUresult (*)(CUdeviceptr*, size_t*, CUdeviceptr);

// The runtime has no such call, and the driver's library may be missing where this module is only imported.
GetAddressRange find_get_address_range() {
    void* function = nullptr;
    cudaDriverEntryPointQueryResult found{};
#if CUDART_VERSION >= 12050
    const cudaError_t status = cudaGetDriverEntryPointByVersion("cuMemGetAddressRange", &function, 12000,
                                                                cudaEnableDefault, &found);
#else
    const cudaError_t status = cudaGetDriverEntryPoint("cuMemGetAddressRange", &function, cudaEnableDefault, &found);
#endif
    check(status, "cuMemGetAddressRange");
    if (found != cudaDriverEntryPointSuccess) throw std::runtime_error("the driver has no cuMemGetAddressRange");
    return reinterpret_cast<GetAddressRange>(function);
}

}  // namespace

Range allocation_of(const void* address) {
    static const GetAddressRange get_address_range = find_get_address_range();
    CUdeviceptr base = 0;
    size_t num_bytes = 0;
    const CUresult status = get_address_range(&base, &num_bytes, reinterpret_cast<CUdeviceptr>(address));
    if (status != CUDA_SUCCESS)
        throw std::runtime_error("the allocation of a tensor: driver error " + std::to_string(int(status)));
    return {reinterpret_cast<void*>(base), num_bytes};
}

bool has_early_start(int device) {
    int major = 0;
    check(cudaDeviceGetAttribute(&major, cudaDevAttrComputeCapabilityMajor, device), "compute capability");
    return major >= 9;
}

cudaError_t launch(const void* kernel, uint32_t num_blocks, uint32_t num_threads, void** arguments, Stream stream,
                   bool starts_early) {
    cudaLaunchAttribute early{};
    early.id = cudaLaunchAttributeProgrammaticStreamSerialization;
    early.val.programmaticStreamSerializationAllowed = 1;
    cudaLaunchConfig_t config{};
    config.gridDim = dim3(num_blocks);
    config.blockDim = dim3(num_threads);
    config.stream = stream;
    config.attrs = &early;
    config.numAttrs = starts_early ? 1 : 0;
    return cudaLaunchKernelExC(&config, kernel, arguments);
}

void* allocate_exchange(size_t num_bytes) {
    void* memory = nullptr;
    check(cudaMalloc(&memory, num_bytes), "exchange memory of " + std::to_string(num_bytes) + " bytes");
    return memory;
}

void* allocate_pinned(size_t num_bytes) {
    void* memory = nullptr;
    check(cudaHostAlloc(&memory, num_bytes, cudaHostAllocMapped), "pinned memory");
    return memory;
}

void free_pinned(void* memory) { (void)cudaFreeHost(memory); }

#endif

}  // namespace splitrank::quick_reduce_gpu
