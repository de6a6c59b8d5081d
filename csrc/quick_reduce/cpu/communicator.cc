#include "communicator.h"

#include <sched.h>

#include <cstring>
#include <stdexcept>

#include "../../cpu/threads/float_environment.h"
#include "../arguments.h"
#include "pipeline.h"

namespace splitrank::quick_reduce_cpu {

using namespace quick_reduce;

namespace {

constexpr uint64_t kPieceBytes = 4096;  // a slot's work: below, a handshake costs more than waiting for a longer piece

FindKernel choose(const std::string& name) {
    if (name.empty()) return (end_instruction_sets() - 1)->find_kernel;
    std::string known;
    for (const InstructionSet* set = begin_instruction_sets(); set != end_instruction_sets(); ++set) {
        if (set->name == name) return set->find_kernel;
        known += std::string(known.empty() ? "" : ", ") + set->name;
    }
    throw std::invalid_argument("instruction set \"" + name + "\": this machine has " + known);
}

void check_codes(uint32_t dtype, uint32_t codec, uint32_t algorithm) {
    if (dtype > uint32_t(DType::kFloat16)) throw std::invalid_argument("unknown dtype code " + text(dtype));
    if (codec > uint32_t(CodecKind::kInt4)) throw std::invalid_argument("unknown codec code " + text(codec));
    if (algorithm == uint32_t(Algorithm::kRegistered) || algorithm == uint32_t(Algorithm::kTagged))
        throw std::invalid_argument("registered and tagged are for accelerators; a host has one-shot and two-shot");
    if (algorithm > uint32_t(Algorithm::kTagged))
        throw std::invalid_argument("unknown algorithm code " + text(algorithm));
}

Control* control(std::byte* region) { return reinterpret_cast<Control*>(region); }
uint64_t load(const uint64_t& word) { return __atomic_load_n(&word, __ATOMIC_ACQUIRE); }
void store(uint64_t& word, uint64_t value) { __atomic_store_n(&word, value, __ATOMIC_RELEASE); }

}  // namespace

// Keeps the mappings while a thread uses them.
class Communicator::Running {
  public:
    explicit Running(Communicator& owner) : owner_(owner) { ++owner_.num_running_; }
    ~Running() { --owner_.num_running_; }
    State state() const { return owner_.state_; }

  private:
    Communicator& owner_;
};

Communicator::Communicator(uint32_t rank, uint32_t world_size, uint32_t num_slots, uint64_t segment_bytes,
                           const std::string& instruction_set)
    : rank_(rank), world_size_(world_size), num_slots_(num_slots), segment_bytes_(segment_bytes) {
    check_shape(rank, world_size, num_slots, kMaxSlots, segment_bytes);
    find_kernel_ = choose(instruction_set);
    const IsolatedLayout layout({world_size, num_slots, segment_bytes});
    region_ = SharedMemory::create(world_size == 1 ? kControlBytes : layout.num_bytes());
    token_ = make_token();
    std::memcpy(region_.data() + kTokenOffset, &token_, sizeof(token_));
    slots_ = std::make_unique<SlotState[]>(num_slots);
}

Communicator::~Communicator() { close(); }

std::string Communicator::handle() const {
    if (state_ == State::kClosed) throw std::runtime_error("the communicator is closed");
    return to_bytes({kProtocol, rank_, world_size_, num_slots_, segment_bytes_, token_, region_.address()});
}

void Communicator::open(const std::vector<std::string>& handles, uint32_t num_slots) {
    if (state_ != State::kCreated) throw std::runtime_error("a communicator is opened once");
    if (handles.size() != world_size_)
        throw std::invalid_argument(text(handles.size()) + " handles for " + text(world_size_) + " ranks");
    if (num_slots < 1 || num_slots > num_slots_)
        throw std::invalid_argument(text(num_slots) + " slots agreed: this rank has " + text(num_slots_));
    std::vector<SharedMemory> peers(world_size_);
    for (uint32_t peer = 0; peer < world_size_; ++peer) {
        const Handle handle = handle_from_bytes(handles[peer]);
        check_handle(handle, peer, num_slots);
        if (peer == rank_) continue;
        peers[peer] = SharedMemory::open(handle.address);
        if (std::memcmp(peers[peer].data() + kTokenOffset, &handle.token, sizeof(handle.token)) != 0)
            throw std::runtime_error("process " + std::to_string(handle.address.pid) + " is not the rank " +
                                     text(peer) + " that made the handle");
    }
    peers_ = std::move(peers);
    for (uint32_t peer = 0; peer < world_size_; ++peer)
        view_.regions[peer] = peer == rank_ ? region_.data() : peers_[peer].data();
    view_.slots = slots_.get();
    view_.failure = &failure_;
    view_.host_abort = &host_abort_;
    view_.rank = rank_;
    view_.shape = {world_size_, num_slots, segment_bytes_};
    state_ = State::kOpen;
}

void Communicator::check_handle(const Handle& handle, uint32_t peer, uint32_t num_slots) const {
    const std::string whose = "the handle of rank " + text(peer);
    if (handle.rank != peer) throw std::invalid_argument(whose + " is of rank " + text(handle.rank));
    if (handle.world_size != world_size_)
        throw std::invalid_argument(whose + " is for " + text(handle.world_size) + " ranks, not " + text(world_size_));
    if (handle.segment_bytes != segment_bytes_)
        throw std::invalid_argument(whose + " has segments of " + text(handle.segment_bytes) + " bytes, this rank of " +
                                    text(segment_bytes_));
    if (num_slots > handle.num_slots)
        throw std::invalid_argument(whose + " has " + text(handle.num_slots) + " slots of " + text(num_slots));
}

bool Communicator::all_reduce(uint64_t input, uint64_t output, uint64_t num_elements, uint32_t dtype, uint32_t codec,
                              uint32_t algorithm, uint64_t timeout_ns) {
    const Running running(*this);
    if (running.state() != State::kOpen)
        throw std::runtime_error(running.state() == State::kClosed ? "the communicator is closed"
                                                                   : "the communicator is not open yet");
    check_codes(dtype, codec, algorithm);
    check_codec(CodecKind(codec), Algorithm(algorithm), world_size_);
    if (num_elements > 0) check_tensors(input, output, num_elements * element_bytes(DType(dtype)));
    if (failure()) return false;
    Call call = plan(num_elements, DType(dtype), CodecKind(codec), Algorithm(algorithm));
    call.input = reinterpret_cast<const void*>(input);
    call.output = reinterpret_cast<void*>(output);
    call.timeout_ns = timeout_ns;
    if (world_size_ == 1) return copy(call, element_bytes(DType(dtype)));
    if (num_elements == 0) return true;
    const cpu::DefaultFloatEnvironment environment;  // else a rank that flushes subnormals has other sums
    return find_kernel_(dtype, codec, algorithm, world_size_)(&view_, &call);
}

// Every rank computes the same plan from the same arguments.
Call Communicator::plan(uint64_t num_elements, DType dtype, CodecKind codec, Algorithm algorithm) {
    Call call{};
    call.num_elements = num_elements;
    call.id = next_id();
    cut_into_tiles(call, algorithm == Algorithm::kOneShot ? 1 : world_size_,
                   segment_capacity(codec, dtype, view_.shape.segment_bytes), view_.shape.num_slots,
                   kPieceBytes / element_bytes(dtype));
    call.fingerprint = fingerprint(call, dtype, codec, algorithm);
    return call;
}

uint32_t Communicator::next_id() {
    const uint32_t id = ++last_id_;
    return id != 0 ? id : ++last_id_;
}

// A world of one: the sum is the input.
bool Communicator::copy(const Call& call, uint64_t bytes_each) {
    if (load(host_abort_) != 0) return false;
    if (call.input != call.output && call.num_elements > 0)
        std::memcpy(call.output, call.input, call.num_elements * bytes_each);
    return true;
}

std::optional<Failure> Communicator::failure() const {
    if (__atomic_load_n(&failure_.complete, __ATOMIC_ACQUIRE) == 0) return std::nullopt;
    return failure_;
}

void Communicator::abort() {
    const Running running(*this);
    if (running.state() != State::kClosed) raise_abort();
}

void Communicator::raise_abort() {
    store(host_abort_, uint64_t(1) + rank_);
    store(control(region_.data())->abort, uint64_t(1) + rank_);
    for (std::byte* region : view_.regions)
        if (region != nullptr) store(control(region)->abort, uint64_t(1) + rank_);
}

void Communicator::close() {
    const std::lock_guard<std::mutex> lock(closing_);
    if (state_.exchange(State::kClosed) == State::kClosed) return;
    if (num_running_ != 0) raise_abort();
    while (num_running_ != 0) sched_yield();
    peers_.clear();
    region_ = SharedMemory();
    slots_.reset();
}

uint64_t Communicator::num_bytes() const {
    return region_.num_bytes() + (slots_ ? num_slots_ * sizeof(SlotState) : 0) + sizeof(*this);
}

}  // namespace splitrank::quick_reduce_cpu
