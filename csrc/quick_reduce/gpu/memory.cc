#include "memory.h"

#include <random>

namespace splitrank::quick_reduce_gpu {

namespace {

std::array<uint8_t, 16> this_process() {
    static const std::array<uint8_t, 16> token = [] {
        std::random_device random;
        std::array<uint8_t, 16> bytes;
        for (uint8_t& byte : bytes) byte = uint8_t(random());
        return bytes;
    }();
    return token;
}

// Pointers of one process are good on all its devices, once access is on.
void enable_access(int peer_device) {
    int own_device = 0;
    check(QR_RUNTIME(GetDevice)(&own_device), "current device");
    if (own_device == peer_device) return;
    const auto status = QR_RUNTIME(DeviceEnablePeerAccess)(peer_device, 0);
    if (status == QR_RUNTIME(ErrorPeerAccessAlreadyEnabled)) {
        (void)QR_RUNTIME(GetLastError)();
        return;
    }
    check(status, "access of device " + std::to_string(own_device) + " to device " + std::to_string(peer_device));
}

}  // namespace

MemoryName name_memory(const void* address, uint64_t num_bytes, int device) {
    MemoryName name{};
    const Range allocation = allocation_of(address);
    name.process = this_process();
    check(QR_RUNTIME(IpcGetMemHandle)(&name.allocation, allocation.base),
          "a handle to share an allocation of " + std::to_string(allocation.num_bytes) + " bytes with other processes");
    name.address = reinterpret_cast<uint64_t>(address);
    name.offset = name.address - reinterpret_cast<uint64_t>(allocation.base);
    name.num_bytes = num_bytes;
    name.device = device;
    return name;
}

std::byte* PeerMemory::map(const MemoryName& name) {
    if (name.process == this_process()) {
        enable_access(name.device);
        return reinterpret_cast<std::byte*>(name.address);
    }
    const std::string key(reinterpret_cast<const char*>(&name.allocation), sizeof(name.allocation));
    auto found = opened_.find(key);
    if (found == opened_.end()) {
        void* base = nullptr;
        check(QR_RUNTIME(IpcOpenMemHandle)(&base, name.allocation, QR_RUNTIME(IpcMemLazyEnablePeerAccess)),
              "mapping " + std::to_string(name.num_bytes) + " bytes of a peer's device " + std::to_string(name.device));
        found = opened_.emplace(key, static_cast<std::byte*>(base)).first;
    }
    return found->second + name.offset;
}

void PeerMemory::close() {
    for (const auto& [key, base] : opened_) (void)QR_RUNTIME(IpcCloseMemHandle)(base);
    opened_.clear();
}

}  // namespace splitrank::quick_reduce_gpu
