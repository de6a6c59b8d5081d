// What must hold after a schedule. A call that reports success has the exact sum; without a fault every call succeeds;
// with one, every wait has ended, and once a rank has failed every living rank has a record and refuses further calls.
#include "world.h"

namespace interleaving {

using namespace splitrank::quick_reduce;

namespace {

std::string where(uint32_t rank, size_t ordinal) {
    return "rank " + std::to_string(rank) + ", call " + std::to_string(ordinal) + ": ";
}

}  // namespace

bool World::good(uint32_t rank, size_t ordinal) const {
    const RankCall& call = ranks_[rank].calls[ordinal];
    return call.slots_failed == 0 && call.slots_good == call.call.num_slots;
}

bool World::same(const RankCall& a, const RankCall& b) {
    return a.kernel == b.kernel && a.call.num_elements == b.call.num_elements && a.call.id == b.call.id &&
           a.call.segment_elements == b.call.segment_elements && a.call.num_slots == b.call.num_slots;
}

// Do all ranks mean the same by their call of this ordinal?
bool World::agreed(size_t ordinal) const {
    for (uint32_t rank = 0; rank < plan_.world_size; ++rank) {
        if (ordinal >= plan_.calls[rank].size()) return false;
        if (!same(ranks_[rank].calls[ordinal], ranks_[0].calls[ordinal])) return false;
    }
    return true;
}

std::string World::check_result(uint32_t rank, size_t ordinal) {
    const RankCall& call = ranks_[rank].calls[ordinal];
    if (!agreed(ordinal)) return where(rank, ordinal) + "reports success though the ranks' calls differ";
    const void* inputs[kMaxWorldSize];
    for (uint32_t source = 0; source < plan_.world_size; ++source)
        inputs[source] = ranks_[source].calls[ordinal].original.data();
    std::vector<std::byte> expected(call.output.size());
    call.kernel->reference(inputs, plan_.world_size, call.call.num_elements, expected.data());
    if (expected == call.output) return "";
    size_t byte = 0;
    while (expected[byte] == call.output[byte]) ++byte;
    return where(rank, ordinal) + "wrong sum at byte " + std::to_string(byte) + " of " +
           std::to_string(expected.size());
}

std::string World::check_record(uint32_t rank) const {
    const Failure& failure = ranks_[rank].failure;
    const std::string who = "rank " + std::to_string(rank) + ": ";
    if (failure.kind == 0 || failure.complete != 1) return who + "has no failure record";
    const bool sane = failure.kind <= uint32_t(FailureKind::kAborted) && failure.rank == rank && failure.phase <= 2 &&
                      failure.slot < ranks_[rank].slots.size() && failure.peer < plan_.world_size;
    return sane ? "" : who + "its failure record makes no sense";
}

// Each use of a tagged slot has written the word whose turn it was, be it of the message or not.
std::string World::check_ages() const {
    for (const Rank& rank : ranks_)
        for (uint32_t slot = rank.view.shape.num_slots; slot < rank.slots.size(); ++slot) {
            const uint64_t use = rank.slots[slot].sequence;
            if (use == plan_.first_sequence) continue;
            const IsolatedLayout layout(rank.view.shape);
            const uint32_t word = refreshed_word(use, rank.view.shape.num_rows - 1);
            for (uint32_t peer = 0; peer < plan_.world_size - 1; ++peer) {
                const uint64_t place = layout.tagged(slot, first_phase(use), peer) + word * layout.row_stride();
                if (!has_tag(*reinterpret_cast<const TaggedWord*>(rank.region.data() + place), tag_of(use)))
                    return "a word of a tagged slot was not refreshed when it was its turn";
            }
        }
    return "";
}

// After a failure each living rank makes one more call, which must fail at once: without one poll.
std::string World::check_late_calls() {
    scheduler_.reset(1, plan_.world_size);
    streams_.clear();
    num_fibres_ = 0;
    for (uint32_t rank = 0; rank < plan_.world_size; ++rank) {
        if (!alive(rank)) continue;
        PlannedCall late = plan_.calls[0][0];
        late.id = 1000;
        ranks_[rank].calls.push_back(make_call(rank, late, 1000));
        auto stream = std::make_unique<Stream>();
        stream->rank = rank;
        stream->calls.push_back(uint32_t(ranks_[rank].calls.size() - 1));
        add_fibres(*stream, plan_.host_like[rank]);
        streams_.push_back(std::move(stream));
    }
    if (scheduler_.run() != Verdict::kFinished) return "a call after the failure does not end";
    if (scheduler_.polls() != 0) return "a call after the failure waits for its peers";
    for (uint32_t rank = 0; rank < plan_.world_size; ++rank) {
        if (!alive(rank)) continue;
        if (ranks_[rank].calls.back().slots_good != 0) return where(rank, 1000) + "succeeds after the failure";
        if (std::string wrong = check_record(rank); !wrong.empty()) return wrong;
        outcome_.failure_kinds |= 1u << ranks_[rank].failure.kind;
    }
    return "";
}

std::string World::check(Verdict verdict) {
    bool failed = false;
    for (uint32_t rank = 0; rank < plan_.world_size; ++rank) {
        for (size_t i = 0; i < ranks_[rank].calls.size(); ++i) {
            if (good(rank, i)) {
                ++outcome_.good_calls;
                if (std::string wrong = check_result(rank, i); !wrong.empty()) return wrong;
            } else {
                outcome_.failed_calls += ranks_[rank].calls[i].made;
                failed |= alive(rank);
            }
        }
    }
    if (verdict == Verdict::kHang) return "hang: somebody waits for ever";
    if (verdict == Verdict::kTooLong) return "the schedule does not end";
    if (plan_.fault == Fault::kNone && failed) {
        for (uint32_t rank = 0; rank < plan_.world_size; ++rank)
            if (const Failure& failure = ranks_[rank].failure; failure.kind != 0)
                return "rank " + std::to_string(rank) + ": failure of kind " + std::to_string(failure.kind) +
                       " though nothing was wrong";
        return "a call failed though nothing was wrong";
    }
    if (failed) return check_late_calls();
    return plan_.fault == Fault::kNone && choice_.protocol == Protocol::kShipped ? check_ages() : "";
}

}  // namespace interleaving
