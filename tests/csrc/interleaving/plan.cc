#include "plan.h"

#include <algorithm>
#include <cstring>

namespace interleaving {

namespace {

constexpr const char* kNames[] = {
    "none",  "dead-peer", "dead-peer-one-limit", "host-gives-up", "extra-call", "missing-call", "size",
    "dtype", "codec",     "algorithm",           "overlap",       "impatience", "lost-count"};

}  // namespace

const char* name(Fault fault) { return kNames[uint32_t(fault)]; }

Fault fault_named(const char* name) {
    uint32_t fault = 0;
    while (fault < uint32_t(Fault::kCount) && std::strcmp(kNames[fault], name) != 0) ++fault;
    return Fault(fault);
}

namespace {

constexpr uint64_t kTimeouts[] = {10'000'000, 100'000'000, 400'000'000};  // virtual

Contract make_contract(const Kernels& kernels, const Plan& plan, Random& random) {
    const Kernel& kernel = kernels.begin()[random.below(kernels.size())];
    Contract contract;
    contract.kind = kernel.kind;
    contract.wanted_slots = random.between(1, plan.num_slots);
    const uint64_t per_tile = kernel.kind.algorithm == Algorithm::kTwoShot ? plan.world_size : 1;
    contract.capacity = std::min<uint64_t>(32 * random.between(1, 3), kernel.capacity(Plan::kSegmentBytes));
    // Up to three rounds of all slots; sometimes a handful of elements, sometimes an odd number.
    const uint32_t rounds = kernel.kind.algorithm == Algorithm::kTagged ? 1 : random.between(1, 3);
    const uint32_t most = uint32_t(contract.capacity * per_tile * contract.wanted_slots * rounds);
    contract.num_elements = random.chance(0.15) ? random.between(1, 40) : random.between(1, most);
    if (rounds == 1) contract.num_elements = std::min<uint64_t>(contract.num_elements, most);
    return contract;
}

// Historical calls as the old kernels made them: every slot has one tile, and the next call may have more slots.
Contract make_historical_contract(const Kernels& kernels, const Plan& plan, Random& random) {
    Contract contract = make_contract(kernels, plan, random);
    contract.capacity = 32;
    contract.num_elements = 32 * plan.world_size * contract.wanted_slots;
    return contract;
}

// The calls that all ranks would make if nothing went wrong. A captured call comes again with the same id.
std::vector<PlannedCall> make_calls(const Choice& choice, const Plan& plan, const Kernels& kernels, Random& random) {
    std::vector<PlannedCall> calls;
    const uint32_t num_calls = random.between(2, 6);
    uint32_t next_id = random.between(1, 3);
    for (uint32_t i = 0; i < num_calls; ++i) {
        if (i > 0 && plan.fault != Fault::kOverlap && random.chance(0.25)) {
            calls.push_back(calls[random.below(i)]);
            continue;
        }
        PlannedCall call;
        call.contract = choice.protocol == Protocol::kShipped ? make_contract(kernels, plan, random)
                                                              : make_historical_contract(kernels, plan, random);
        // Equal shapes are the usual case.
        if (i > 0 && (choice.equal_sizes || random.chance(0.3))) call.contract = calls[i - 1].contract;
        call.id = next_id++;
        call.timeout_ns = kTimeouts[random.below(3)];
        call.in_place = random.chance(0.3) && call.contract.kind.algorithm != Algorithm::kRegistered;
        calls.push_back(call);
    }
    return calls;
}

// The host refuses a tagged call with more than one tile a slot.
bool can_be_made(const Contract& contract, const Kernels& kernels) {
    if (contract.kind.algorithm != Algorithm::kTagged) return true;
    const auto is_its = [&](const Kernel& kernel) { return kernel.kind == contract.kind; };
    const uint64_t capacity = std::find_if(kernels.begin(), kernels.end(), is_its)->capacity(Plan::kSegmentBytes);
    return contract.num_elements <= contract.wanted_slots * std::min(contract.capacity, capacity) &&
           contract.capacity <= capacity;
}

// Another contract that differs in what the fault names, and in nothing else.
bool spoil(Contract& contract, const Plan& plan, const Kernels& kernels, Random& random) {
    const Kind was = contract.kind;
    if (plan.fault == Fault::kSize) {
        const uint64_t was_elements = contract.num_elements;
        contract.num_elements += random.chance(0.5) ? random.between(1, 200) : 32;
        if (can_be_made(contract, kernels)) return true;
        contract.num_elements = was_elements == 1 ? 1 : was_elements - 1;
        return contract.num_elements != was_elements;
    }
    std::vector<Kind> others;
    for (const Kernel& kernel : kernels) {
        Kind kind = kernel.kind;
        bool differs = false;
        const auto only = [&](auto& value, auto old) {
            differs = value != old;
            value = old;
        };
        if (plan.fault == Fault::kDType) only(kind.dtype, was.dtype);
        if (plan.fault == Fault::kCodec) only(kind.codec, was.codec);
        if (plan.fault == Fault::kAlgorithm) only(kind.algorithm, was.algorithm);
        Contract other = contract;
        other.kind = kernel.kind;
        if (differs && kind == was && can_be_made(other, kernels)) others.push_back(kernel.kind);
    }
    if (others.empty()) return false;
    contract.kind = others[random.below(uint32_t(others.size()))];
    return true;
}

void make_extra_call(Plan& plan, const Kernels& kernels, Random& random) {
    std::vector<PlannedCall>& calls = plan.calls[plan.culprit];
    PlannedCall extra = calls[0];
    extra.contract = make_contract(kernels, plan, random);
    const uint32_t place = random.between(0, uint32_t(calls.size()));
    extra.id = place < calls.size() ? calls[place].id : calls.back().id + 1;
    calls.insert(calls.begin() + place, extra);
    // The host counts on: what follows has a later number than at the peers.
    for (size_t i = place + 1; i < calls.size(); ++i) ++calls[i].id;
}

void drop_call(Plan& plan, Random& random) {
    std::vector<PlannedCall>& calls = plan.calls[plan.culprit];
    const uint32_t place = random.below(uint32_t(calls.size()));
    calls.erase(calls.begin() + place);
    for (size_t i = place; i < calls.size(); ++i) --calls[i].id;
}

void lift_limits(Plan& plan) {
    for (std::vector<PlannedCall>& calls : plan.calls)
        for (PlannedCall& call : calls) call.timeout_ns = Plan::kNever;
}

void overlap(Plan& plan, Random& random) {
    const bool everywhere = random.chance(0.5);
    for (uint32_t rank = 0; rank < plan.world_size; ++rank)
        if (everywhere || rank == plan.culprit)
            for (size_t i = 0; i < plan.calls[rank].size(); ++i) plan.calls[rank][i].stream = uint32_t(i % 2);
}

void apply_fault(Plan& plan, const Kernels& kernels, Random& random) {
    std::vector<PlannedCall>& calls = plan.calls[plan.culprit];
    switch (plan.fault) {
        case Fault::kExtraCall: return make_extra_call(plan, kernels, random);
        case Fault::kMissingCall: return drop_call(plan, random);
        case Fault::kOverlap: return overlap(plan, random);
        case Fault::kImpatience: {
            for (PlannedCall& call : calls) call.timeout_ns = 1;
            return;
        }
        case Fault::kDeadPeerOneLimit:
        case Fault::kHostGivesUp: return lift_limits(plan);
        case Fault::kSize:
        case Fault::kDType:
        case Fault::kCodec:
        case Fault::kAlgorithm: {
            const size_t place = random.below(uint32_t(calls.size()));
            if (!spoil(calls[place].contract, plan, kernels, random)) plan.fault = Fault::kNone;
            return;
        }
        default: return;
    }
}

}  // namespace

Plan make_plan(const Choice& choice, Random& random) {
#ifdef SMALL_TABLE
    static constexpr uint32_t kWorldSizes[] = {2, 3, 2, 3};
#else
    static constexpr uint32_t kWorldSizes[] = {2, 3, 4, 8};
#endif
    Plan plan;
    plan.world_size = choice.world_size != 0 ? choice.world_size : kWorldSizes[random.below(4)];
    plan.num_slots = random.between(1, plan.world_size == 8 ? 2 : 3);
    if (choice.protocol != Protocol::kShipped) plan.num_slots = 2;
    plan.in_blocks = choice.protocol == Protocol::kShipped && random.chance(0.4);
    plan.num_lanes = random.chance(0.7) ? 1 : 2;
    // Slots that were used for a long time: sequence numbers do not fit into 32 bits for ever.
    plan.first_sequence = random.chance(0.25) ? (uint64_t(1) << 31) - random.below(3) : 2 + random.below(2);
    plan.fault = choice.faults ? Fault(random.between(1, uint32_t(Fault::kCount) - 1)) : Fault::kNone;
    if (choice.fault != Fault::kCount) plan.fault = choice.fault;
    plan.culprit = random.below(plan.world_size);
    const Kernels table = kernels(choice.protocol, plan.world_size);
    plan.calls.assign(plan.world_size, make_calls(choice, plan, table, random));
    for (uint32_t rank = 0; rank < plan.world_size; ++rank)
        plan.host_like.push_back(choice.protocol == Protocol::kShipped && !plan.in_blocks && random.chance(0.3));
    apply_fault(plan, table, random);
    return plan;
}

}  // namespace interleaving
