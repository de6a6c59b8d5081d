// A stage's mailbox on a host: the protocol on the caller's thread, regions in memory that processes share. For tests of
// the protocol and of all that is built on it; between stages on a CPU a socket is as fast (comm/README.md).
#pragma once

#include <atomic>
#include <mutex>
#include <optional>
#include <string>
#include <vector>

#include "../../quick_reduce/cpu/shared_memory.h"
#include "../arguments.h"

namespace splitrank::stage_mailbox_cpu {

class HostMailbox {
  public:
    // Throws std::invalid_argument, OutOfMemory, std::system_error.
    HostMailbox(uint32_t stage, uint32_t num_stages, uint32_t num_places, uint64_t part_capacity);
    ~HostMailbox() { close(); }
    HostMailbox(const HostMailbox&) = delete;
    HostMailbox& operator=(const HostMailbox&) = delete;

    // What the other stages need to map the region.
    std::string handle() const;
    // Maps the neighbours' regions; `handles` by stage.
    void open(const std::vector<std::string>& handles);

    // Return when the message is stored, or copied. False: failure() says why. Throw for what the caller did wrong.
    bool send(const std::vector<uint64_t>& parts, const stage_mailbox::Header& header, uint64_t timeout_ns);
    bool receive(const std::vector<uint64_t>& parts, const stage_mailbox::Header& header, uint64_t timeout_ns);

    std::optional<stage_mailbox::Failure> failure() const;
    // Ends the waits of this stage and its neighbours, now and in future.
    void abort();
    // Ends the calls that still run in other threads, and gives all memory back.
    void close();

    uint64_t num_bytes() const { return region_.num_bytes(); }

  private:
    class Running;

    const stage_mailbox::Shape shape_;
    quick_reduce_cpu::SharedMemory region_, previous_, next_;
    stage_mailbox::Counter sent_{}, received_{};
    stage_mailbox::Failure failure_{};
    uint64_t host_abort_ = 0;
    stage_mailbox::View view_;

    enum class State : uint32_t { kCreated, kOpen, kClosed };
    std::atomic<State> state_{State::kCreated};
    std::atomic<uint32_t> num_running_{0};
    std::mutex closing_;
};

}  // namespace splitrank::stage_mailbox_cpu
