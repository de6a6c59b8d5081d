// One rank's end on a GPU: owns its exchange memory and slot state, maps the peers', enqueues calls on streams.
#pragma once

#include <optional>
#include <string>
#include <type_traits>
#include <vector>

#include "graph_inputs.h"
#include "job.h"
#include "memory.h"
#include "tuning.h"

namespace splitrank::quick_reduce_gpu {

constexpr int kProtocol = 3;

// What a rank should ask for: some 112, 98 or 114 MiB for 2, 4 or 8 ranks (pages of 2 MiB), whatever the sizes of messages.
struct Shape {
    uint32_t num_slots;
    uint64_t segment_bytes;
};
constexpr Shape default_shape(uint32_t world_size) {
    return {world_size <= 4 ? 384u : 192u, world_size <= 2 ? 55u << 10 : 27u << 10};
}

class Communicator {
  public:
    // Throws std::invalid_argument, OutOfMemory, std::runtime_error with the runtime's words.
    Communicator(uint32_t rank, uint32_t world_size, uint32_t num_slots, uint64_t segment_bytes, int device);
    ~Communicator();
    Communicator(const Communicator&) = delete;
    Communicator& operator=(const Communicator&) = delete;

    // What a peer needs to map the region.
    std::string handle() const;
    // Slots that surely run at the same time, beside some multiprocessors left to others' kernels: a block that waits
    // for a peer's block must not keep the peer's block, or what that one waits for, from running.
    uint32_t max_slots() const { return max_slots_; }
    // Maps the region of every rank; `handles` by rank, `num_slots` as agreed by all: the least of their max_slots.
    void open(const std::vector<std::string>& handles, uint32_t num_slots);

    // Enqueues. False: an earlier call failed, and failure() says why. Throws for what the caller did wrong.
    // `starts_early`: this launch is brought to its multiprocessors before the one before it has ended, and so may the
    // next be that asks for it (csrc/README.md). Changes no result; where the GPU cannot, nothing.
    bool all_reduce(uint64_t input, uint64_t output, uint64_t num_elements, uint32_t dtype, uint32_t codec,
                    uint32_t algorithm, uint64_t timeout_ns, uint64_t stream, const Tuning& tuning, bool starts_early);
    // The same without the launch: for tests that play all ranks in one grid.
    quick_reduce::Job plan(uint64_t input, uint64_t output, uint64_t num_elements, uint32_t dtype, uint32_t codec,
                           uint32_t algorithm, uint64_t timeout_ns, const Tuning& tuning);

    // Elements of the largest tagged call; 0 where that algorithm is not offered. After open, and the same on all ranks.
    uint64_t tagged_capacity(uint32_t dtype, uint32_t codec) const;

    // Inputs of registered calls captured since the last registration, to be exchanged by all ranks; see graph_inputs.h.
    std::vector<std::string> captured_inputs() const;
    void register_inputs(const std::vector<std::vector<std::string>>& by_rank);

    std::optional<quick_reduce::Failure> failure() const;
    // Ends the waits of all ranks, now and in future.
    void abort();
    // Waits for what is enqueued, which ends within the calls' limits, and unmaps the peers' memory. Once all ranks have
    // done so, nobody writes to this rank's any more, and close() may free it.
    void leave();
    // The rest: gives all memory back. A communicator that was open and is destroyed without this keeps its exchange
    // memory for the life of the process, since a peer may still write to it.
    void close();

    uint64_t num_bytes() const { return num_bytes_; }
    uint32_t world_size() const { return world_size_; }
    Tuning fill_in(const Tuning& tuning, quick_reduce::Algorithm algorithm, quick_reduce::CodecKind codec,
                   uint64_t num_bytes) const;

  private:
    struct HostWords;

    void check_open() const;
    // A kernel failed, or the host gave up: abort words in device memory may still be on their way.
    bool is_poisoned() const;
    bool copy(uint64_t input, uint64_t output, uint64_t num_bytes, uint64_t stream);

    const uint32_t rank_;
    const uint32_t world_size_;
    const uint32_t num_slots_;
    const uint64_t segment_bytes_;
    const int device_;
    bool has_early_start_ = false;
    uint32_t max_slots_ = 0;
    uint64_t num_bytes_ = 0;

    DeviceMemory<std::byte> region_;
    DeviceMemory<quick_reduce::SlotState> slots_;
    PinnedMemory<HostWords> host_words_;
    std::unique_ptr<std::remove_pointer_t<Stream>, DestroyStream> abort_stream_;
    PeerMemory peers_;
    GraphInputs inputs_;
    quick_reduce::View view_{};
    uint32_t last_id_ = 0;

    enum class State { kCreated, kOpen, kLeft, kClosed };
    State state_ = State::kCreated;
};

}  // namespace splitrank::quick_reduce_gpu
