#include "shared_memory.h"

#include <fcntl.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

#include <cerrno>
#include <fstream>
#include <string>
#include <system_error>
#include <utility>

#include "../errors.h"

namespace splitrank::quick_reduce_cpu {

namespace {

using quick_reduce::OutOfMemory;

[[noreturn]] void fail(int error, const std::string& what) {
    throw std::system_error(error, std::generic_category(), what);
}

// What the machine can still give, in bytes. The kernel itself would rather kill a process than refuse.
uint64_t available_bytes() {
    std::ifstream meminfo("/proc/meminfo");
    for (std::string line; std::getline(meminfo, line);)
        if (line.rfind("MemAvailable:", 0) == 0) return std::stoull(line.substr(13)) * 1024;
    return UINT64_MAX;
}

}  // namespace

SharedMemory::SharedMemory(SharedMemory&& other) noexcept { *this = std::move(other); }

SharedMemory& SharedMemory::operator=(SharedMemory&& other) noexcept {
    std::swap(data_, other.data_);
    std::swap(num_bytes_, other.num_bytes_);
    std::swap(fd_, other.fd_);
    return *this;
}

SharedMemory::~SharedMemory() {
    if (data_ != nullptr) munmap(data_, num_bytes_);
    if (fd_ >= 0) close(fd_);
}

SharedMemory SharedMemory::create(uint64_t num_bytes) {
    const std::string wanted = std::to_string(num_bytes) + " bytes of exchange memory";
    if (const uint64_t available = available_bytes(); num_bytes > available)
        throw OutOfMemory("no room for " + wanted + ": " + std::to_string(available) + " bytes are available");
    SharedMemory memory;
    memory.num_bytes_ = num_bytes;
    memory.fd_ = memfd_create("splitrank-quick-reduce", MFD_CLOEXEC);
    if (memory.fd_ < 0) fail(errno, "cannot create " + wanted);
    int error;
    do error = posix_fallocate(memory.fd_, 0, off_t(num_bytes));
    while (error == EINTR);
    if (error == ENOSPC || error == ENOMEM) throw OutOfMemory("no room for " + wanted);
    if (error != 0) fail(error, "cannot allocate " + wanted);
    memory.map();
    return memory;
}

SharedMemory SharedMemory::open(const SharedMemoryAddress& address) {
    const std::string path = "/proc/" + std::to_string(address.pid) + "/fd/" + std::to_string(address.fd);
    SharedMemory memory;
    memory.fd_ = ::open(path.c_str(), O_RDWR | O_CLOEXEC);
    if (memory.fd_ < 0) fail(errno, "cannot open the exchange memory of a peer, " + path);
    struct stat status {};
    if (fstat(memory.fd_, &status) != 0) fail(errno, "cannot examine " + path);
    if (uint64_t(status.st_size) != address.num_bytes)
        fail(ESTALE, path + " has " + std::to_string(status.st_size) + " bytes instead of " +
                         std::to_string(address.num_bytes) + ": the process that made it is gone");
    memory.num_bytes_ = address.num_bytes;
    memory.map();
    close(std::exchange(memory.fd_, -1));  // the mapping keeps the memory
    return memory;
}

SharedMemoryAddress SharedMemory::address() const { return {getpid(), fd_, num_bytes_}; }

// A forked child has no business in it (and would keep it alive).
void SharedMemory::map() {
    void* mapped = mmap(nullptr, num_bytes_, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_POPULATE, fd_, 0);
    if (mapped == MAP_FAILED) fail(errno, "cannot map " + std::to_string(num_bytes_) + " bytes of exchange memory");
    data_ = static_cast<std::byte*>(mapped);
    madvise(data_, num_bytes_, MADV_DONTFORK);
}

}  // namespace splitrank::quick_reduce_cpu
