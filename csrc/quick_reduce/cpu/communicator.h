// One rank's end of a group of ranks on one machine: owns its exchange memory, maps the peers', runs calls.
#pragma once

#include <atomic>
#include <memory>
#include <mutex>
#include <optional>
#include <string>
#include <vector>

#include "../handshake.h"
#include "handle.h"
#include "kernel.h"
#include "shared_memory.h"

namespace splitrank::quick_reduce_cpu {

class Communicator {
  public:
    // Throws std::invalid_argument, OutOfMemory, std::system_error. `instruction_set` empty: the best one.
    Communicator(uint32_t rank, uint32_t world_size, uint32_t num_slots, uint64_t segment_bytes,
                 const std::string& instruction_set);
    ~Communicator();
    Communicator(const Communicator&) = delete;
    Communicator& operator=(const Communicator&) = delete;

    // What a peer needs to map the region.
    std::string handle() const;
    // Maps the region of every rank; `handles` by rank, `num_slots` as agreed by all: at most the own number.
    void open(const std::vector<std::string>& handles, uint32_t num_slots);

    // Returns when the result is there. False: failure() says why. Throws for what the caller did wrong.
    bool all_reduce(uint64_t input, uint64_t output, uint64_t num_elements, uint32_t dtype, uint32_t codec,
                    uint32_t algorithm, uint64_t timeout_ns);

    std::optional<quick_reduce::Failure> failure() const;
    // Ends the waits of all ranks, now and in future.
    void abort();
    // Ends the calls that still run in other threads, and gives all memory back.
    void close();

    uint32_t max_slots() const { return num_slots_; }
    uint64_t num_bytes() const;

  private:
    class Running;

    void check_handle(const Handle& handle, uint32_t peer, uint32_t num_slots) const;
    quick_reduce::Call plan(uint64_t num_elements, quick_reduce::DType dtype, quick_reduce::CodecKind codec,
                            quick_reduce::Algorithm algorithm);
    bool copy(const quick_reduce::Call& call, uint64_t bytes_each);
    void raise_abort();
    uint32_t next_id();

    const uint32_t rank_;
    const uint32_t world_size_;
    const uint32_t num_slots_;
    const uint64_t segment_bytes_;
    FindKernel find_kernel_;

    SharedMemory region_;
    uint64_t token_ = 0;
    std::vector<SharedMemory> peers_;  // by rank; the own place stays empty
    std::unique_ptr<quick_reduce::SlotState[]> slots_;
    quick_reduce::Failure failure_{};
    uint64_t host_abort_ = 0;
    quick_reduce::View view_{};

    enum class State : uint32_t { kCreated, kOpen, kClosed };
    std::atomic<State> state_{State::kCreated};
    std::atomic<uint32_t> num_running_{0};
    std::atomic<uint32_t> last_id_{0};
    std::mutex closing_;
};

}  // namespace splitrank::quick_reduce_cpu
