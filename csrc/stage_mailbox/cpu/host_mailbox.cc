#include "host_mailbox.h"

#include <sched.h>

#include "../../quick_reduce/cpu/host_executor.h"

namespace splitrank::stage_mailbox_cpu {

using namespace stage_mailbox;
using quick_reduce::HostExecutor;
using quick_reduce_cpu::SharedMemory;
using quick_reduce_cpu::SharedMemoryAddress;

namespace {

using Handle = stage_mailbox::Handle<SharedMemoryAddress>;

void store(std::byte* word, uint64_t value) {
    __atomic_store_n(reinterpret_cast<uint64_t*>(word), value, __ATOMIC_RELEASE);
}

}  // namespace

// Keeps the mappings while a thread uses them.
class HostMailbox::Running {
  public:
    explicit Running(HostMailbox& owner) : owner_(owner) { ++owner_.num_running_; }
    ~Running() { --owner_.num_running_; }
    Running(const Running&) = delete;
    Running& operator=(const Running&) = delete;

    void check_open() const {
        if (owner_.state_ == State::kClosed) throw std::runtime_error("the mailbox is closed");
        if (owner_.state_ != State::kOpen) throw std::runtime_error("the mailbox is not open yet");
    }

  private:
    HostMailbox& owner_;
};

HostMailbox::HostMailbox(uint32_t stage, uint32_t num_stages, uint32_t num_places, uint64_t part_capacity)
    : shape_(checked_shape(stage, num_stages, num_places, part_capacity)),
      view_{nullptr, nullptr, nullptr, &sent_, &received_, &failure_, &host_abort_, stage, num_stages,
            Layout(num_places, shape_.part_capacity), Layout(num_places, 0)} {
    region_ = SharedMemory::create(view_.own_layout.num_bytes());
}

std::string HostMailbox::handle() const {
    if (state_ == State::kClosed) throw std::runtime_error("the mailbox is closed");
    const Handle handle{kHandleProtocol, 0, shape_, region_.address()};
    return {reinterpret_cast<const char*>(&handle), sizeof(handle)};
}

void HostMailbox::open(const std::vector<std::string>& handles) {
    if (state_ != State::kCreated) throw std::runtime_error("a mailbox is opened once");
    if (handles.size() != shape_.num_stages)
        throw std::invalid_argument(text(handles.size()) + " handles for " + text(shape_.num_stages) + " stages");
    const uint32_t before = (shape_.stage + shape_.num_stages - 1) % shape_.num_stages;
    const uint32_t behind = (shape_.stage + 1) % shape_.num_stages;
    const auto previous = handle_from_bytes<SharedMemoryAddress>(handles[before], shape_, before);
    const auto next = handle_from_bytes<SharedMemoryAddress>(handles[behind], shape_, behind);
    previous_ = SharedMemory::open(previous.region);
    next_ = SharedMemory::open(next.region);
    view_.own = region_.data();
    view_.previous = previous_.data();
    view_.next = next_.data();
    view_.next_layout = Layout(shape_.num_places, next.shape.part_capacity);
    state_ = State::kOpen;
}

bool HostMailbox::send(const std::vector<uint64_t>& parts, const Header& header, uint64_t timeout_ns) {
    const Running running(*this);
    running.check_open();
    const Message message = make_message(parts, header, view_.next_layout.part_capacity(), timeout_ns);
    if (failure()) return false;
    HostExecutor exec;
    return Mailbox<HostExecutor>(exec, view_, message, 0).send();
}

bool HostMailbox::receive(const std::vector<uint64_t>& parts, const Header& header, uint64_t timeout_ns) {
    const Running running(*this);
    running.check_open();
    const Message message = make_message(parts, header, view_.own_layout.part_capacity(), timeout_ns);
    if (failure()) return false;
    HostExecutor exec;
    return Mailbox<HostExecutor>(exec, view_, message, 0).receive();
}

std::optional<Failure> HostMailbox::failure() const {
    if (__atomic_load_n(&failure_.complete, __ATOMIC_ACQUIRE) == 0) return std::nullopt;
    return failure_;
}

void HostMailbox::abort() {
    const Running running(*this);
    if (state_ == State::kClosed) return;
    __atomic_store_n(&host_abort_, uint64_t(1) + shape_.stage, __ATOMIC_RELEASE);
    for (std::byte* region : {region_.data(), view_.previous, view_.next})
        if (region != nullptr) store(region, uint64_t(1) + shape_.stage);
}

void HostMailbox::close() {
    const std::lock_guard<std::mutex> lock(closing_);
    if (state_ == State::kClosed) return;
    if (num_running_ != 0) abort();
    state_ = State::kClosed;
    while (num_running_ != 0) sched_yield();
    previous_ = SharedMemory();
    next_ = SharedMemory();
    region_ = SharedMemory();
}

}  // namespace splitrank::stage_mailbox_cpu
