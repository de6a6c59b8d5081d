// Memory that processes of one machine share without a name: it lives as long as somebody holds it, so that nothing is
// left behind when a process is killed.
#pragma once

#include <cstddef>
#include <cstdint>

namespace splitrank::quick_reduce_cpu {

// Where a peer finds the memory: as /proc/<pid>/fd/<fd>.
struct SharedMemoryAddress {
    int32_t pid;
    int32_t fd;
    uint64_t num_bytes;
};

// Owns a mapping, and the file behind it in the process that made it.
class SharedMemory {
  public:
    SharedMemory() = default;
    SharedMemory(SharedMemory&& other) noexcept;
    SharedMemory& operator=(SharedMemory&& other) noexcept;
    ~SharedMemory();

    // Zeroed memory with all its pages, so that a machine without room says so here. Throws OutOfMemory.
    static SharedMemory create(uint64_t num_bytes);
    // Throws std::system_error.
    static SharedMemory open(const SharedMemoryAddress& address);

    SharedMemoryAddress address() const;
    std::byte* data() const { return data_; }
    uint64_t num_bytes() const { return num_bytes_; }

  private:
    void map();

    std::byte* data_ = nullptr;
    uint64_t num_bytes_ = 0;
    int fd_ = -1;
};

}  // namespace splitrank::quick_reduce_cpu
