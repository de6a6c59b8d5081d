// A stage's mailbox on a GPU: owns its region and counters, maps the neighbours' regions, enqueues messages on streams.
// All messages of a stage go by one stream, or by streams that events order.
#pragma once

#include <optional>
#include <string>
#include <type_traits>
#include <vector>

#include "../../quick_reduce/gpu/memory.h"
#include "../arguments.h"

namespace splitrank::stage_mailbox_gpu {

class DeviceMailbox {
  public:
    // Throws std::invalid_argument, OutOfMemory, std::runtime_error with the runtime's words.
    DeviceMailbox(uint32_t stage, uint32_t num_stages, uint32_t num_places, uint64_t part_capacity, int device);
    ~DeviceMailbox();
    DeviceMailbox(const DeviceMailbox&) = delete;
    DeviceMailbox& operator=(const DeviceMailbox&) = delete;

    // What the other stages need to map the region.
    std::string handle() const;
    // Maps the neighbours' regions; `handles` by stage.
    void open(const std::vector<std::string>& handles);

    // Enqueue. False: an earlier message failed, and failure() says why. Throw for what the caller did wrong.
    bool send(const std::vector<uint64_t>& parts, const stage_mailbox::Header& header, uint64_t timeout_ns,
              uint64_t stream);
    bool receive(const std::vector<uint64_t>& parts, const stage_mailbox::Header& header, uint64_t timeout_ns,
                 uint64_t stream);

    std::optional<stage_mailbox::Failure> failure() const;
    // Ends the waits of this stage and its neighbours, now and in future.
    void abort();
    // Waits for what is enqueued, which ends within the messages' limits, and unmaps the neighbours' memory. Once they
    // have done so, nobody writes to this stage's any more, and close() may free it.
    void leave();
    // The rest: gives all memory back. A mailbox that was open and is destroyed without this keeps its region for the life
    // of the process, since a neighbour may still write to it.
    void close();

    uint64_t num_bytes() const { return num_bytes_; }

  private:
    struct HostWords;

    bool launch(const void* kernel, stage_mailbox::Message message, uint64_t stream);
    void check_open() const;
    bool is_poisoned() const;

    const stage_mailbox::Shape shape_;
    const int device_;
    uint64_t num_bytes_ = 0;
    quick_reduce_gpu::DeviceMemory<std::byte> region_;
    quick_reduce_gpu::DeviceMemory<stage_mailbox::Counter> counters_;
    quick_reduce_gpu::PinnedMemory<HostWords> host_words_;
    std::unique_ptr<std::remove_pointer_t<quick_reduce_gpu::Stream>, quick_reduce_gpu::DestroyStream> abort_stream_;
    quick_reduce_gpu::PeerMemory peers_;
    stage_mailbox::View view_;

    enum class State { kCreated, kOpen, kLeft, kClosed };
    State state_ = State::kCreated;
};

}  // namespace splitrank::stage_mailbox_gpu
