#include "communicator.h"

#include <algorithm>
#include <cstring>

#include "../arguments.h"

namespace splitrank::quick_reduce_gpu {

using namespace quick_reduce;

namespace {

constexpr uint32_t kMaxSlots = 4096;
// Of a tagged place. Between two ranks 128 blocks together take 64 MiB with INT4, 38 with INT8, 19 MiB as they are; among
// more, whose words cross the link more often, some hundred KiB.
constexpr uint32_t num_tagged_rows(uint32_t world_size) { return world_size == 2 ? 385 : 16; }
constexpr uint32_t kRowBytes = kTaggedWave * sizeof(TaggedWord);
static_assert((num_tagged_rows(2) - 1) * kTaggedWave <= kMaxPlaceWords);
constexpr uint32_t kFreeMultiprocessors = 4;  // for kernels of others, NCCL's among them

struct Handle {
    uint32_t protocol;
    uint32_t rank;
    uint32_t world_size;
    uint32_t num_slots;
    uint64_t segment_bytes;
    MemoryName region;
};

void check_device(int device) {
    const int count = device_count();
    if (device < 0 || device >= count)
        throw std::runtime_error("device " + std::to_string(device) + ": " + kTarget + " finds " +
                                 std::to_string(count) + " devices");
}

void check_codes(uint32_t dtype, uint32_t codec, uint32_t algorithm) {
    if (dtype > uint32_t(DType::kFloat16)) throw std::invalid_argument("unknown dtype code " + text(dtype));
    if (codec > uint32_t(CodecKind::kInt4)) throw std::invalid_argument("unknown codec code " + text(codec));
    if (algorithm > uint32_t(Algorithm::kTagged))
        throw std::invalid_argument("unknown algorithm code " + text(algorithm));
    if (algorithm == uint32_t(Algorithm::kRegistered) && !kHasRegistered)
        throw std::invalid_argument(std::string("the registered algorithm is not offered on ") + kTarget);
    if (algorithm == uint32_t(Algorithm::kTagged) && !kHasTagged)
        throw std::invalid_argument(std::string("the tagged algorithm is not offered on ") + kTarget);
}

void check_output(uint64_t input, uint64_t output, Algorithm algorithm) {
    if (input == output && algorithm == Algorithm::kRegistered)
        throw std::invalid_argument("the registered algorithm needs an output beside the input: peers read the input");
}

// Blocks have one slot each in the tagged algorithm.
RegionShape region_shape(uint32_t world_size, uint32_t num_slots, uint64_t segment_bytes) {
    const RegionShape shape{world_size, num_slots, segment_bytes};
    if (!kHasTagged) return shape;
    return with_tagged_slots(shape, num_slots / kSlotsPerBlock, num_tagged_rows(world_size), kRowBytes);
}

// One a multiprocessor at most. With two, on one of two pairs of H200s, every tenth kind of call took 400 us longer each
// time, why is not known; with one, none ever did.
// The least over all kernels of this world size, since any of them may be the next call.
uint32_t resident_blocks(uint32_t world_size, int device) {
    int multiprocessors = 0;
    check(QR_RUNTIME(DeviceGetAttribute)(&multiprocessors, kMultiprocessorCount, device), "multiprocessors");
    int per_multiprocessor = 1;
    for (uint32_t dtype = 0; dtype < 3; ++dtype)
        for (uint32_t codec = 0; codec < 4; ++codec)
            for (uint32_t algorithm = 0; algorithm < 4; ++algorithm) {
                const void* kernel = find_kernel(DType(dtype), world_size, CodecKind(codec), Algorithm(algorithm));
                if (kernel == nullptr) continue;
                const int threads = max_threads(world_size, Algorithm(algorithm) == Algorithm::kTagged);
                int fit = 0;
                check(QR_RUNTIME(OccupancyMaxActiveBlocksPerMultiprocessor)(&fit, kernel, threads, 0), "occupancy");
                per_multiprocessor = std::min(per_multiprocessor, fit);
            }
    const int left = std::max(multiprocessors - int(kFreeMultiprocessors), 1);
    return uint32_t(left * per_multiprocessor);
}

bool is_capturing(Stream stream) {
    auto status = QR_RUNTIME(StreamCaptureStatusNone);
    check(QR_RUNTIME(StreamIsCapturing)(stream, &status), "capture status");
    return status != QR_RUNTIME(StreamCaptureStatusNone);
}

}  // namespace

// What kernel and host share while the kernel runs.
struct Communicator::HostWords {
    alignas(kLine) Failure failure;
    alignas(kLine) uint64_t abort;
};

Communicator::Communicator(uint32_t rank, uint32_t world_size, uint32_t num_slots, uint64_t segment_bytes, int device)
    : rank_(rank), world_size_(world_size), num_slots_(num_slots), segment_bytes_(segment_bytes), device_(device) {
    check_shape(rank, world_size, num_slots, kMaxSlots, segment_bytes);
    check_device(device);
    const DeviceGuard guard(device);
    if (world_size == 1) {
        max_slots_ = num_slots;
        return;
    }
    has_early_start_ = has_early_start(device);
    max_slots_ = std::min(num_slots, kSlotsPerBlock * resident_blocks(world_size, device));
    const RegionShape shape = region_shape(world_size, num_slots, segment_bytes);
    const uint64_t region_bytes = round_up(IsolatedLayout(shape).num_bytes(), 2u << 20);
    const uint64_t state_bytes = (uint64_t(num_slots) + shape.num_tagged_slots) * sizeof(SlotState);
    region_.reset(static_cast<std::byte*>(allocate_exchange(region_bytes)));
    check(QR_RUNTIME(Memset)(region_.get(), 0, region_bytes), "zeroing exchange memory");
    void* memory = nullptr;
    check(QR_RUNTIME(Malloc)(&memory, state_bytes), "slot state");
    slots_.reset(static_cast<SlotState*>(memory));
    check(QR_RUNTIME(Memset)(memory, 0, state_bytes), "zeroing slot state");
    host_words_.reset(new (allocate_pinned(sizeof(HostWords))) HostWords());
    Stream stream = nullptr;
    check(QR_RUNTIME(StreamCreateWithFlags)(&stream, QR_RUNTIME(StreamNonBlocking)), "a stream to abort by");
    abort_stream_.reset(stream);
    inputs_.create(world_size, device);
    check(QR_RUNTIME(DeviceSynchronize)(), "zeroing exchange memory");
    num_bytes_ = region_bytes + state_bytes + inputs_.num_bytes() + sizeof(HostWords);
}

Communicator::~Communicator() {
    if (state_ == State::kOpen || state_ == State::kLeft) {
        (void)region_.release();
        return;
    }
    close();
}

std::string Communicator::handle() const {
    if (state_ == State::kClosed) throw std::runtime_error("the communicator is closed");
    Handle handle{uint32_t(kProtocol), rank_, world_size_, num_slots_, segment_bytes_, {}};
    const DeviceGuard guard(device_);
    if (world_size_ > 1) handle.region = name_memory(region_.get(), num_bytes_, device_);
    return {reinterpret_cast<const char*>(&handle), sizeof(handle)};
}

void Communicator::open(const std::vector<std::string>& handles, uint32_t num_slots) {
    if (state_ != State::kCreated) throw std::runtime_error("a communicator is opened once");
    if (handles.size() != world_size_)
        throw std::invalid_argument(text(handles.size()) + " handles for " + text(world_size_) + " ranks");
    if (num_slots < kSlotsPerBlock || num_slots > max_slots_)
        throw std::invalid_argument(text(num_slots) + " slots agreed: this rank has " + text(max_slots_));
    const DeviceGuard guard(device_);
    for (uint32_t peer = 0; peer < world_size_ && world_size_ > 1; ++peer) {
        const std::string whose = "the handle of rank " + text(peer);
        Handle handle;
        if (handles[peer].size() != sizeof(handle))
            throw std::invalid_argument(whose + " has " + text(handles[peer].size()) + " bytes, not " +
                                        text(sizeof(handle)));
        std::memcpy(&handle, handles[peer].data(), sizeof(handle));
        if (handle.protocol != uint32_t(kProtocol) || handle.rank != peer || handle.world_size != world_size_ ||
            handle.segment_bytes != segment_bytes_ || handle.num_slots < num_slots)
            throw std::invalid_argument(whose + " is of rank " + text(handle.rank) + " of " + text(handle.world_size) +
                                        ", protocol " + text(handle.protocol) + ", " + text(handle.num_slots) +
                                        " slots with segments of " + text(handle.segment_bytes) + " bytes");
        view_.regions[peer] = peer == rank_ ? region_.get() : peers_.map(handle.region);
    }
    if (world_size_ > 1) {
        void* words = nullptr;
        check(QR_RUNTIME(HostGetDevicePointer)(&words, host_words_.get(), 0), "pinned memory's device address");
        view_.slots = slots_.get();
        view_.failure = &static_cast<HostWords*>(words)->failure;
        view_.host_abort = &static_cast<HostWords*>(words)->abort;
        view_.rank = rank_;
        view_.shape = region_shape(world_size_, num_slots, segment_bytes_);
    }
    state_ = State::kOpen;
}

void Communicator::check_open() const {
    if (state_ == State::kCreated) throw std::runtime_error("the communicator is not open yet");
    if (state_ != State::kOpen) throw std::runtime_error("the communicator is closed");
}

Tuning Communicator::fill_in(const Tuning& asked, Algorithm algorithm, CodecKind codec, uint64_t num_bytes) const {
    Tuning tuning = tune(algorithm, codec, num_bytes);
    if (asked.num_blocks != 0) tuning.num_blocks = asked.num_blocks;
    if (asked.num_threads != 0) tuning.num_threads = asked.num_threads;
    if (asked.tiles_per_block != 0) tuning.tiles_per_block = asked.tiles_per_block;
    if (asked.min_tile_bytes != 0) tuning.min_tile_bytes = asked.min_tile_bytes;
    const auto most = uint32_t(max_threads(world_size_, algorithm == Algorithm::kTagged));
    if (asked.num_threads == 0) tuning.num_threads = std::min(tuning.num_threads, most);
    tuning.num_blocks = std::min(tuning.num_blocks, view_.shape.num_slots / kSlotsPerBlock);
    if (tuning.num_threads % 64 != 0 || tuning.num_threads > most)
        throw std::invalid_argument(text(tuning.num_threads) + " threads: a multiple of 64 up to " + text(most));
    return tuning;
}

uint64_t Communicator::tagged_capacity(uint32_t dtype, uint32_t codec) const {
    check_open();
    if (!kHasTagged || world_size_ == 1) return 0;
    check_codes(dtype, codec, uint32_t(Algorithm::kTagged));
    const uint64_t of_block = quick_reduce::tagged_capacity(CodecKind(codec), DType(dtype), view_.shape.num_rows);
    return of_block * fill_in({}, Algorithm::kTagged, CodecKind(codec), kMaxSegmentBytes).num_blocks;
}

// Every rank computes the same plan from the same arguments.
Job Communicator::plan(uint64_t input, uint64_t output, uint64_t num_elements, uint32_t dtype, uint32_t codec,
                       uint32_t algorithm, uint64_t timeout_ns, const Tuning& tuning) {
    Call call{};
    call.input = reinterpret_cast<const void*>(input);
    call.output = reinterpret_cast<void*>(output);
    call.num_elements = num_elements;
    call.timeout_ns = timeout_ns;
    if (++last_id_ == 0) ++last_id_;
    call.id = last_id_;
    const auto kind = Algorithm(algorithm);
    const uint64_t ranks_per_tile = kind == Algorithm::kTwoShot ? world_size_ : 1;
    uint64_t limit = segment_capacity(CodecKind(codec), DType(dtype), view_.shape.segment_bytes);
    uint64_t tiles_per_block = tuning.tiles_per_block;
    if (kind == Algorithm::kTagged) {  // one use of a slot a call
        limit = quick_reduce::tagged_capacity(CodecKind(codec), DType(dtype), view_.shape.num_rows);
        tiles_per_block = 1;
        if (num_elements > limit * tuning.num_blocks)
            throw std::invalid_argument(text(num_elements) + " elements: the tagged algorithm takes " +
                                        text(limit * tuning.num_blocks) + " with " + text(tuning.num_blocks) + " blocks");
    }
    if (kind == Algorithm::kRegistered) {  // nothing is staged: one tile a block, however large
        limit = round_up(num_elements, kBlock);
        tiles_per_block = 1;
    }
    // As many tiles on every block, so that none works alone at the end.
    tiles_per_block = std::max(tiles_per_block, divide_up(num_elements, ranks_per_tile * limit * tuning.num_blocks));
    cut_into_tiles(call, ranks_per_tile, limit, tuning.num_blocks * tiles_per_block,
                   tuning.min_tile_bytes / (element_bytes(DType(dtype)) * ranks_per_tile));
    call.num_slots = uint32_t(std::min<uint64_t>(tuning.num_blocks, call.num_tiles));
    call.fingerprint = fingerprint(call, DType(dtype), CodecKind(codec), kind);
    const bool registered = kind == Algorithm::kRegistered;
    const uint64_t num_bytes = num_elements * element_bytes(DType(dtype));
    return {view_, call, registered ? inputs_.add(call.input, num_bytes) : nullptr};
}

bool Communicator::all_reduce(uint64_t input, uint64_t output, uint64_t num_elements, uint32_t dtype, uint32_t codec,
                              uint32_t algorithm, uint64_t timeout_ns, uint64_t stream, const Tuning& asked,
                              bool starts_early) {
    check_open();
    check_codes(dtype, codec, algorithm);
    check_codec(CodecKind(codec), Algorithm(algorithm), world_size_);
    const uint64_t num_bytes = num_elements * element_bytes(DType(dtype));
    if (num_elements == 0) return !is_poisoned();
    check_tensors(input, output, num_bytes);
    check_output(input, output, Algorithm(algorithm));
    if (is_poisoned()) return false;
    const DeviceGuard guard(device_);
    if (world_size_ == 1) return copy(input, output, num_bytes, stream);
    const auto queue = reinterpret_cast<Stream>(stream);
    if (Algorithm(algorithm) == Algorithm::kRegistered && !is_capturing(queue))
        throw std::invalid_argument("the registered algorithm is for calls captured in a graph");
    const Tuning tuning = fill_in(asked, Algorithm(algorithm), CodecKind(codec), num_bytes);
    Job job = plan(input, output, num_elements, dtype, codec, algorithm, timeout_ns, tuning);
    job.starts_early = starts_early && has_early_start_;
    void* arguments[] = {&job};
    const void* kernel = find_kernel(DType(dtype), world_size_, CodecKind(codec), Algorithm(algorithm));
    check(launch(kernel, job.call.num_slots, tuning.num_threads, arguments, queue, job.starts_early),
          "launch of " + text(job.call.num_slots) + " blocks");
    return true;
}

bool Communicator::copy(uint64_t input, uint64_t output, uint64_t num_bytes, uint64_t stream) {
    if (input != output)
        check(QR_RUNTIME(MemcpyAsync)(reinterpret_cast<void*>(output), reinterpret_cast<const void*>(input), num_bytes,
                                      QR_RUNTIME(MemcpyDeviceToDevice), reinterpret_cast<Stream>(stream)),
              "copy of " + text(num_bytes) + " bytes");
    return true;
}

std::vector<std::string> Communicator::captured_inputs() const {
    check_open();
    const DeviceGuard guard(device_);
    return inputs_.pending();
}

void Communicator::register_inputs(const std::vector<std::vector<std::string>>& by_rank) {
    check_open();
    const DeviceGuard guard(device_);
    inputs_.patch(rank_, by_rank, peers_);
}

std::optional<Failure> Communicator::failure() const {
    if (!host_words_ || __atomic_load_n(&host_words_->failure.complete, __ATOMIC_ACQUIRE) == 0) return std::nullopt;
    return host_words_->failure;
}

bool Communicator::is_poisoned() const {
    return failure() || (host_words_ && __atomic_load_n(&host_words_->abort, __ATOMIC_ACQUIRE) != 0);
}

// The own kernels look at the host's word while they spin. The copies, past any kernel, are for the peers' kernels and
// for later ones.
void Communicator::abort() {
    if (!host_words_ || state_ == State::kClosed) return;
    __atomic_store_n(&host_words_->abort, uint64_t(1) + rank_, __ATOMIC_RELEASE);
    if (state_ != State::kOpen) return;
    const DeviceGuard guard(device_);
    for (uint32_t rank = 0; rank < world_size_; ++rank)
        check(QR_RUNTIME(MemcpyAsync)(view_.regions[rank], &host_words_->abort, sizeof(uint64_t),
                                      QR_RUNTIME(MemcpyHostToDevice), abort_stream_.get()),
              "abort word of rank " + text(rank));
}

void Communicator::leave() {
    if (state_ != State::kOpen) return;
    state_ = State::kLeft;
    if (world_size_ == 1) return;
    const DeviceGuard guard(device_);
    check(QR_RUNTIME(DeviceSynchronize)(), "end of the calls");
    peers_.close();
}

void Communicator::close() {
    if (state_ == State::kClosed) return;
    leave();
    state_ = State::kClosed;
    const DeviceGuard guard(device_);
    inputs_.close();
    abort_stream_.reset();
    region_.reset();
    slots_.reset();
    num_bytes_ = 0;
}

}  // namespace splitrank::quick_reduce_gpu
