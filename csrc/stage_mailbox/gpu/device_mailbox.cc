#include "device_mailbox.h"

#include <algorithm>
#include <new>

#include "job.h"

namespace splitrank::stage_mailbox_gpu {

using namespace stage_mailbox;
using namespace quick_reduce_gpu;

namespace {

using Handle = stage_mailbox::Handle<MemoryName>;

// A kernel that is loaded at its first launch may wait for the device, on which the neighbour's already waits for it.
void load_kernels() {
    for (const void* kernel : {send_kernel(), receive_kernel()}) {
        int fit = 0;
        check(QR_RUNTIME(OccupancyMaxActiveBlocksPerMultiprocessor)(&fit, kernel, int(kThreads), 0), "mailbox kernels");
    }
}

}  // namespace

// What kernel and host share while the kernel runs.
struct DeviceMailbox::HostWords {
    alignas(kLine) Failure failure;
    alignas(kLine) uint64_t abort;
};

DeviceMailbox::DeviceMailbox(uint32_t stage, uint32_t num_stages, uint32_t num_places, uint64_t part_capacity,
                             int device)
    : shape_(checked_shape(stage, num_stages, num_places, part_capacity)),
      device_(device),
      view_{nullptr, nullptr, nullptr, nullptr, nullptr, nullptr, nullptr, stage, num_stages,
            Layout(num_places, shape_.part_capacity), Layout(num_places, 0)} {
    if (const int count = device_count(); device < 0 || device >= count)
        throw std::runtime_error("device " + std::to_string(device) + ": " + kTarget + " finds " +
                                 std::to_string(count) + " devices");
    const DeviceGuard guard(device);
    const uint64_t region_bytes = round_up(view_.own_layout.num_bytes(), 2u << 20);
    constexpr uint64_t kCounterBytes = 2 * sizeof(Counter);
    region_.reset(static_cast<std::byte*>(allocate_exchange(region_bytes)));
    check(QR_RUNTIME(Memset)(region_.get(), 0, region_bytes), "zeroing the mailbox");
    void* memory = nullptr;
    check(QR_RUNTIME(Malloc)(&memory, kCounterBytes), "the mailbox's counters");
    counters_.reset(static_cast<Counter*>(memory));
    check(QR_RUNTIME(Memset)(memory, 0, kCounterBytes), "zeroing the mailbox's counters");
    host_words_.reset(new (allocate_pinned(sizeof(HostWords))) HostWords());
    Stream stream = nullptr;
    check(QR_RUNTIME(StreamCreateWithFlags)(&stream, QR_RUNTIME(StreamNonBlocking)), "a stream to abort by");
    abort_stream_.reset(stream);
    load_kernels();
    check(QR_RUNTIME(DeviceSynchronize)(), "zeroing the mailbox");
    num_bytes_ = region_bytes + kCounterBytes + sizeof(HostWords);
}

DeviceMailbox::~DeviceMailbox() {
    if (state_ == State::kOpen || state_ == State::kLeft) {
        (void)region_.release();
        return;
    }
    close();
}

std::string DeviceMailbox::handle() const {
    if (state_ == State::kClosed) throw std::runtime_error("the mailbox is closed");
    const DeviceGuard guard(device_);
    const Handle handle{kHandleProtocol, 0, shape_, name_memory(region_.get(), view_.own_layout.num_bytes(), device_)};
    return {reinterpret_cast<const char*>(&handle), sizeof(handle)};
}

void DeviceMailbox::open(const std::vector<std::string>& handles) {
    if (state_ != State::kCreated) throw std::runtime_error("a mailbox is opened once");
    if (handles.size() != shape_.num_stages)
        throw std::invalid_argument(text(handles.size()) + " handles for " + text(shape_.num_stages) + " stages");
    const DeviceGuard guard(device_);
    const uint32_t before = (shape_.stage + shape_.num_stages - 1) % shape_.num_stages;
    const uint32_t behind = (shape_.stage + 1) % shape_.num_stages;
    const auto previous = handle_from_bytes<MemoryName>(handles[before], shape_, before);
    const auto next = handle_from_bytes<MemoryName>(handles[behind], shape_, behind);
    view_.own = region_.get();
    view_.previous = peers_.map(previous.region);
    view_.next = peers_.map(next.region);
    view_.next_layout = Layout(shape_.num_places, next.shape.part_capacity);
    void* words = nullptr;
    check(QR_RUNTIME(HostGetDevicePointer)(&words, host_words_.get(), 0), "pinned memory's device address");
    view_.failure = &static_cast<HostWords*>(words)->failure;
    view_.host_abort = &static_cast<HostWords*>(words)->abort;
    view_.sent = counters_.get();
    view_.received = counters_.get() + 1;
    state_ = State::kOpen;
}

void DeviceMailbox::check_open() const {
    if (state_ == State::kCreated) throw std::runtime_error("the mailbox is not open yet");
    if (state_ != State::kOpen) throw std::runtime_error("the mailbox is closed");
}

bool DeviceMailbox::send(const std::vector<uint64_t>& parts, const Header& header, uint64_t timeout_ns,
                         uint64_t stream) {
    check_open();
    return launch(send_kernel(), make_message(parts, header, view_.next_layout.part_capacity(), timeout_ns), stream);
}

bool DeviceMailbox::receive(const std::vector<uint64_t>& parts, const Header& header, uint64_t timeout_ns,
                            uint64_t stream) {
    check_open();
    return launch(receive_kernel(), make_message(parts, header, view_.own_layout.part_capacity(), timeout_ns), stream);
}

bool DeviceMailbox::launch(const void* kernel, Message message, uint64_t stream) {
    if (is_poisoned()) return false;
    const DeviceGuard guard(device_);
    const uint64_t packets = quick_reduce::divide_up(message.header.part_bytes, sizeof(Packet));
    message.num_blocks = uint32_t(std::min<uint64_t>(kMaxBlocks, quick_reduce::divide_up(packets, kThreads)));
    Job job{view_, message};
    void* arguments[] = {&job};
    check(QR_RUNTIME(LaunchKernel)(kernel, dim3(message.num_blocks), dim3(kThreads), arguments, 0,
                                   reinterpret_cast<Stream>(stream)),
          "launch of a message of " + text(message.num_blocks) + " blocks");
    return true;
}

std::optional<Failure> DeviceMailbox::failure() const {
    if (!host_words_ || __atomic_load_n(&host_words_->failure.complete, __ATOMIC_ACQUIRE) == 0) return std::nullopt;
    return host_words_->failure;
}

bool DeviceMailbox::is_poisoned() const {
    return failure() || __atomic_load_n(&host_words_->abort, __ATOMIC_ACQUIRE) != 0;
}

// The own kernels look at the host's word while they spin. The copies, past any kernel, are for the neighbours' kernels
// and for later ones.
void DeviceMailbox::abort() {
    if (!host_words_ || state_ == State::kClosed) return;
    __atomic_store_n(&host_words_->abort, uint64_t(1) + shape_.stage, __ATOMIC_RELEASE);
    if (state_ != State::kOpen) return;
    const DeviceGuard guard(device_);
    for (std::byte* region : {view_.own, view_.previous, view_.next})
        check(QR_RUNTIME(MemcpyAsync)(region, &host_words_->abort, sizeof(uint64_t), QR_RUNTIME(MemcpyHostToDevice),
                                      abort_stream_.get()),
              "abort word of stage " + text(shape_.stage) + " or a neighbour");
}

void DeviceMailbox::leave() {
    if (state_ != State::kOpen) return;
    state_ = State::kLeft;
    const DeviceGuard guard(device_);
    check(QR_RUNTIME(DeviceSynchronize)(), "end of the messages");
    peers_.close();
}

void DeviceMailbox::close() {
    if (state_ == State::kClosed) return;
    leave();
    state_ = State::kClosed;
    const DeviceGuard guard(device_);
    abort_stream_.reset();
    region_.reset();
    counters_.reset();
    num_bytes_ = 0;
}

}  // namespace splitrank::stage_mailbox_gpu
