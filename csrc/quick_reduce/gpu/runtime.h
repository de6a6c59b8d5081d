// The few calls of the CUDA or HIP runtime that the communicator needs, by one name each, and their errors as exceptions.
#pragma once

#include <cstdint>
#include <stdexcept>
#include <string>

#if defined(SPLITRANK_HIP)
#include <hip/hip_runtime_api.h>
#define QR_RUNTIME(name) hip##name
#else
#include <cuda_runtime_api.h>
#define QR_RUNTIME(name) cuda##name
#endif

#include "../errors.h"

namespace splitrank::quick_reduce_gpu {

using Stream = QR_RUNTIME(Stream_t);
using IpcHandle = QR_RUNTIME(IpcMemHandle_t);

#if defined(SPLITRANK_HIP)
constexpr const char* kTarget = "hip";
constexpr bool kHasRegistered = false;  // peers would read tensors that this rank's caches hold: never tried
constexpr bool kHasTagged = false;      // no document promises that 16 bytes are stored in one piece
constexpr auto kMultiprocessorCount = hipDeviceAttributeMultiprocessorCount;
#else
constexpr const char* kTarget = "cuda";
constexpr bool kHasRegistered = true;
constexpr bool kHasTagged = true;
constexpr auto kMultiprocessorCount = cudaDevAttrMultiProcessorCount;
#endif

// Throws with what was attempted. Also clears the error, so that the next call of anybody does not find it.
inline void check(QR_RUNTIME(Error_t) status, const std::string& what) {
    if (status == QR_RUNTIME(Success)) return;
    (void)QR_RUNTIME(GetLastError)();
    const std::string message = what + ": " + QR_RUNTIME(GetErrorString)(status);
#if defined(SPLITRANK_HIP)
    if (status == hipErrorOutOfMemory) throw quick_reduce::OutOfMemory(message);
#else
    if (status == cudaErrorMemoryAllocation) throw quick_reduce::OutOfMemory(message);
#endif
    throw std::runtime_error(message);
}

inline int device_count() {
    int count = 0;
    const auto status = QR_RUNTIME(GetDeviceCount)(&count);
    (void)QR_RUNTIME(GetLastError)();
    return status == QR_RUNTIME(Success) ? count : 0;  // no driver: no device
}

// Works on one device and goes back to the thread's own.
class DeviceGuard {
  public:
    explicit DeviceGuard(int device) {
        check(QR_RUNTIME(GetDevice)(&before_), "current device");
        if (before_ != device) check(QR_RUNTIME(SetDevice)(device), "device " + std::to_string(device));
    }
    ~DeviceGuard() { (void)QR_RUNTIME(SetDevice)(before_); }
    DeviceGuard(const DeviceGuard&) = delete;
    DeviceGuard& operator=(const DeviceGuard&) = delete;

  private:
    int before_ = 0;
};

struct Range {
    void* base;
    size_t num_bytes;
};

// The allocation that holds `address`.
Range allocation_of(const void* address);

// Whether a launch on this device may start before the one before it has ended (programmatic dependent launch).
bool has_early_start(int device);

// A grid of one dimension. `starts_early`: as above, from the moment on when every block of the launch before allows it.
QR_RUNTIME(Error_t)
launch(const void* kernel, uint32_t num_blocks, uint32_t num_threads, void** arguments, Stream stream, bool starts_early);

// Exchange memory: on AMD fine-grained, so that no cache keeps what a peer has overwritten.
void* allocate_exchange(size_t num_bytes);

// Host memory that kernels read and write while the host does; uncached on the device.
void* allocate_pinned(size_t num_bytes);
void free_pinned(void* memory);

}  // namespace splitrank::quick_reduce_gpu
