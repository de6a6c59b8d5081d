#include "world.h"

namespace interleaving {

using namespace splitrank::quick_reduce;

namespace {

constexpr std::byte kGarbage{0xee};

uint64_t ranks_per_tile(const Contract& contract, uint32_t world_size) {
    return contract.kind.algorithm == Algorithm::kTwoShot ? world_size : 1;
}

const Kernel* find(const Kernels& kernels, const Kind& kind) {
    for (const Kernel& kernel : kernels)
        if (kernel.kind == kind) return &kernel;
    return nullptr;
}

// Finite elements of very different magnitude, other ones for every rank and call: any mistake changes a sum.
std::vector<std::byte> make_input(DType dtype, uint64_t num_elements, uint64_t seed) {
    Random random(seed);
    std::vector<std::byte> input(num_elements * element_bytes(dtype));
    for (uint64_t i = 0; i < num_elements; ++i) {
        const uint64_t bits = random.next();
        const uint32_t exponent = 120 + uint32_t(bits >> 40) % 12;
        const uint32_t word = uint32_t(bits >> 32) << 31 | exponent << 23 | (uint32_t(bits) & 0x7fffff);
        const auto half = uint16_t((word >> 16 & 0x8000) | (exponent - 112) << 10 | (word >> 13 & 0x3ff));
        const uint16_t wide = uint16_t(word >> 16);
        std::byte* to = input.data() + i * element_bytes(dtype);
        if (dtype == DType::kFloat32) std::memcpy(to, &word, 4);
        if (dtype == DType::kBfloat16) std::memcpy(to, &wide, 2);
        if (dtype == DType::kFloat16) std::memcpy(to, &half, 2);
    }
    return input;
}

}  // namespace

World::World(Scheduler& scheduler, const Choice& choice, const Plan& plan)
    : scheduler_(scheduler), choice_(choice), plan_(plan), kernels_(kernels(choice.protocol, plan.world_size)) {
    ranks_.resize(plan_.world_size);
    for (uint32_t rank = 0; rank < plan_.world_size; ++rank) make_rank(rank);
    for (Rank& rank : ranks_)
        for (uint32_t peer = 0; peer < plan_.world_size; ++peer) rank.view.regions[peer] = ranks_[peer].region.data();
    uint64_t colour = 1;
    for (const RankCall& call : ranks_[0].calls) {
        colours_.push_back(colour);
        colour += divide_up(call.call.num_tiles, call.call.num_slots);
    }
}

void World::make_rank(uint32_t index) {
    Rank& rank = ranks_[index];
    const RegionShape shape = with_tagged_slots({plan_.world_size, plan_.region_slots(), Plan::kSegmentBytes},
                                                plan_.num_slots, kTaggedRows, sizeof(TaggedWord));
    rank.region.resize(IsolatedLayout(shape).num_bytes());
    rank.slots.resize(shape.num_slots + shape.num_tagged_slots);
    age_words(rank.region, shape);
    const bool behind = plan_.fault == Fault::kLostCount && index == plan_.culprit;
    for (SlotState& slot : rank.slots) slot = {plan_.first_sequence - (behind ? 2 : 0), 0};
    rank.view.slots = rank.slots.data();
    rank.view.failure = &rank.failure;
    rank.view.host_abort = &rank.host_abort;
    rank.view.rank = index;
    rank.view.shape = shape;
    for (const PlannedCall& planned : plan_.calls[index])
        rank.calls.push_back(make_call(index, planned, rank.calls.size()));
}

// Slots that were used for a long time: every word that no use had to write since holds the very tag that comes next.
void World::age_words(std::vector<std::byte>& region, const RegionShape& shape) const {
    const IsolatedLayout layout(shape);
    const uint32_t num_words = shape.num_rows - 1;
    // Fresh memory, or a layout that has other things there.
    if (plan_.first_sequence < 2 * num_words + 2 || choice_.protocol != Protocol::kShipped) return;
    for (uint32_t slot = 0; slot < shape.num_tagged_slots; ++slot)
        for (uint32_t parity = 0; parity < kNumFirstPhases; ++parity)
            for (uint32_t peer = 0; peer < shape.world_size - 1; ++peer) {
                const uint64_t place = layout.tagged(shape.num_slots + slot, Phase(parity), peer);
                const auto part = [&](uint64_t word) -> uint32_t& {
                    std::byte* at = region.data() + place + word * layout.row_stride();
                    return reinterpret_cast<TaggedWord*>(at)->part[3];
                };
                const uint64_t next = plan_.first_sequence + 1 + (plan_.first_sequence + 1 + parity) % 2;
                for (uint32_t word = 0; word < num_words; ++word) part(word) = tag_of(next) << (32 - kTagBits);
                for (uint64_t use = next - 2 * num_words; use < next; use += 2)
                    part(refreshed_word(use, num_words)) = tag_of(use) << (32 - kTagBits);
            }
}

World::RankCall World::make_call(uint32_t rank, const PlannedCall& planned, size_t ordinal) const {
    const Contract& contract = planned.contract;
    RankCall made;
    made.kernel = find(kernels_, contract.kind);
    made.original = make_input(contract.kind.dtype, contract.num_elements, mix(ordinal * 64 + rank));
    made.input.assign(made.original.size(), kGarbage);
    made.output = made.input;
    Call& call = made.call;
    call = {};
    call.output = made.output.data();  // vectors keep their memory when they are moved
    const bool in_place = planned.in_place && contract.kind.algorithm != Algorithm::kRegistered;
    call.input = in_place ? call.output : made.input.data();
    call.num_elements = contract.num_elements;
    call.id = planned.id;
    call.timeout_ns = planned.timeout_ns;
    cut_into_tiles(call, ranks_per_tile(contract, plan_.world_size), contract.capacity, contract.wanted_slots, kBlock);
    if (!colour_from_host())
        call.fingerprint = fingerprint(call, contract.kind.dtype, contract.kind.codec, contract.kind.algorithm);
    return made;
}

// Historical: the host counts the uses, and a flag is that count alone.
bool World::colour_from_host() const {
    return choice_.protocol == Protocol::kHistoricalEqual || choice_.protocol == Protocol::kHistoricalAtLeast;
}

void World::add_stream(uint32_t rank, uint32_t number) {
    auto stream = std::make_unique<Stream>();
    stream->rank = rank;
    for (uint32_t i = 0; i < plan_.calls[rank].size(); ++i)
        if (plan_.calls[rank][i].stream == number) stream->calls.push_back(i);
    if (stream->calls.empty()) return;
    add_fibres(*stream, plan_.host_like[rank]);
    streams_.push_back(std::move(stream));
}

void World::add_fibres(Stream& stream, bool host_like) {
    const uint32_t num_blocks = host_like ? 1 : plan_.num_slots;
    const uint32_t num_lanes = host_like ? 1 : plan_.num_lanes;
    stream.blocks.resize(num_blocks);
    stream.first_fibre = num_fibres_;
    stream.num_fibres = num_blocks * num_lanes;
    num_fibres_ += stream.num_fibres;
    for (uint32_t slot = 0; slot < num_blocks; ++slot) {
        stream.blocks[slot].reset(num_lanes);
        for (uint32_t lane = 0; lane < num_lanes; ++lane)
            scheduler_.add(stream.rank,
                           [this, &stream, slot, lane, host_like] { run_lane(stream, slot, lane, host_like); });
    }
    launch(stream);
}

// Before a call starts on a stream: now, and not earlier, its input is there.
void World::launch(Stream& stream) {
    stream.arrived = 0;
    if (stream.current == stream.calls.size()) return;
    const uint32_t ordinal = stream.calls[stream.current];
    RankCall& call = ranks_[stream.rank].calls[ordinal];
    call.made = true;
    (call.call.input == call.call.output ? call.output : call.input) = call.original;
    if (colour_from_host())
        for (SlotState& slot : ranks_[stream.rank].slots) slot.sequence = colours_[ordinal] - 1;
}

void World::run_lane(Stream& stream, uint32_t slot, uint32_t lane, bool host_like) {
    FibreExecutor exec(scheduler_, stream.blocks[slot], lane);
    for (size_t place = 0; place < stream.calls.size(); ++place) {
        while (stream.current != place) scheduler_.block();
        run_one(stream, ranks_[stream.rank].calls[stream.calls[place]], exec, slot, host_like);
        if (++stream.arrived < stream.num_fibres) continue;
        RankCall& done = ranks_[stream.rank].calls[stream.calls[place]];
        // What a kernel has done its host sees by the record.
        if (plan_.in_blocks)
            (ranks_[stream.rank].failure.kind == 0 ? done.slots_good : done.slots_failed) = done.call.num_slots;
        std::fill(done.input.begin(), done.input.end(), kGarbage);  // the memory serves another purpose now
        ++stream.current;
        launch(stream);
        for (uint32_t i = 0; i < stream.num_fibres; ++i) scheduler_.wake(stream.first_fibre + i);
    }
    scheduler_.finish();
}

void World::run_one(Stream& stream, RankCall& call, FibreExecutor& exec, uint32_t slot, bool host_like) {
    const View& view = ranks_[stream.rank].view;
    const uint32_t num_slots = call.call.num_slots;
    const auto inputs = inputs_of(size_t(&call - ranks_[stream.rank].calls.data()));
    if (host_like && call.kernel->run_call != nullptr) {
        const bool ok = call.kernel->run_call(exec, view, call.call);
        (ok ? call.slots_good : call.slots_failed) += num_slots;
        return;
    }
    if (plan_.in_blocks) {
        if (slot < num_slots) call.kernel->run_block(exec, view, call.call, inputs.data(), slot);
        return scheduler_.drain_own();
    }
    const uint32_t end = host_like ? num_slots : std::min(slot + 1, num_slots);
    for (; slot < end; ++slot) {
        const bool ok = call.kernel->run_slot(exec, view, call.call, inputs.data(), slot);
        if (exec.lane() == 0) ++(ok ? call.slots_good : call.slots_failed);
    }
    scheduler_.drain_own();  // a kernel ends
}

// What the ranks have exchanged of a call whose inputs are read in place; null where a rank has none.
std::array<const void*, kMaxWorldSize> World::inputs_of(size_t ordinal) const {
    std::array<const void*, kMaxWorldSize> inputs{};
    for (uint32_t rank = 0; rank < plan_.world_size; ++rank)
        if (ordinal < ranks_[rank].calls.size()) inputs[rank] = ranks_[rank].calls[ordinal].call.input;
    return inputs;
}

void World::arm_fault(Random& random) {
    const uint64_t step = random.below(1u << random.between(3, 13));
    const bool dies = plan_.fault == Fault::kDeadPeer || plan_.fault == Fault::kDeadPeerOneLimit ||
                      plan_.fault == Fault::kHostGivesUp;
    if (dies) {
        dead_rank_ = plan_.culprit;
        scheduler_.kill_rank_at(plan_.culprit, step);
    }
    if (plan_.fault == Fault::kImpatience) scheduler_.make_restless(plan_.culprit);
    if (plan_.fault == Fault::kHostGivesUp || plan_.fault == Fault::kDeadPeerOneLimit)
        scheduler_.when_all_wait([this] { give_up(); });
}

// One of the ranks that wait gives up: its host raises the abort word, or its waits get a limit.
void World::give_up() {
    for (const auto& stream : streams_) {
        if (!alive(stream->rank) || stream->current == stream->calls.size()) continue;
        Rank& rank = ranks_[stream->rank];
        if (plan_.fault == Fault::kHostGivesUp || plan_.in_blocks)
            rank.host_abort = 1 + stream->rank;
        else
            for (RankCall& call : rank.calls) call.call.timeout_ns = 1;
        return;
    }
}

Outcome World::run(Random& random) {
    scheduler_.reset(random.next(), plan_.world_size);
    arm_fault(random);
    for (uint32_t rank = 0; rank < plan_.world_size; ++rank)
        for (uint32_t stream = 0; stream < 2; ++stream) add_stream(rank, stream);
    const Verdict verdict = scheduler_.run();
    outcome_.steps = scheduler_.steps();
    outcome_.violation = check(verdict);
    return outcome_;
}

}  // namespace interleaving
