// Memory that other ranks map: its name as it travels, and what this rank has mapped.
#pragma once

#include <array>
#include <cstddef>
#include <cstdint>
#include <map>
#include <memory>
#include <string>

#include "runtime.h"

namespace splitrank::quick_reduce_gpu {

struct FreeDevice {
    void operator()(void* memory) const { (void)QR_RUNTIME(Free)(memory); }
};
struct FreeHost {
    void operator()(void* memory) const { free_pinned(memory); }
};
struct DestroyStream {
    void operator()(Stream stream) const { (void)QR_RUNTIME(StreamDestroy)(stream); }
};
template <class T>
using DeviceMemory = std::unique_ptr<T, FreeDevice>;
template <class T>
using PinnedMemory = std::unique_ptr<T, FreeHost>;

// How another rank finds memory of this one. Copied as bytes.
struct MemoryName {
    std::array<uint8_t, 16> process;  // random: pids repeat across containers
    IpcHandle allocation;
    uint64_t address;  // in the owner's address space: for ranks of one process
    uint64_t offset;   // within the allocation
    uint64_t num_bytes;
    int32_t device;  // in the owner's numbering: for ranks of one process
    int32_t reserved;
};

// The name of [address, address + num_bytes) on `device`.
MemoryName name_memory(const void* address, uint64_t num_bytes, int device);

// Peers' allocations as mapped here; each is opened once and closed at the end.
class PeerMemory {
  public:
    PeerMemory() = default;
    ~PeerMemory() { close(); }
    PeerMemory(const PeerMemory&) = delete;
    PeerMemory& operator=(const PeerMemory&) = delete;

    // To be called with the own device current.
    std::byte* map(const MemoryName& name);
    void close();

  private:
    std::map<std::string, std::byte*> opened_;  // by the allocation's handle
};

}  // namespace splitrank::quick_reduce_gpu
