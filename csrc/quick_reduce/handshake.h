// The handshake, once for all targets: claim a slot, publish a phase, await a phase, fail without hanging.
//
// A flag holds (fingerprint, sequence number of the slot); a reader accepts exactly the one it expects. An older one has
// not been replaced yet: wait. Nothing else can ever become right, because nobody overwrites what was not read (two_shot.h
// and one_shot.h say why): it is an error and not a reason to wait.
//
// `Exec` is where the protocol runs: a host thread, the lanes of a GPU block, a fibre of the tests. It has
//   static constexpr int kLaneElements   elements that one lane codes at once: 8 on a GPU (4 lanes share a scale), 32 on a host
//   static constexpr int kWave           lanes that run in step: loops over shared scales end together
//   static constexpr int kUnroll         packets a lane has in flight
//   uint32_t lane(), num_lanes()         within the block that runs this slot
//   void release_block()                 every lane's exchange stores are performed for all ranks; then all lanes go on
//   bool all(bool)                       all lanes meet; true if true on each; what any lane acquired, all have acquired
//   void store_flag(uint64_t*, uint64_t) system scope, ordered after release_block
//   uint64_t load_flag(const uint64_t*)  system scope, acquire
//   uint32_t exchange(uint32_t*, uint32_t), bool claim(uint32_t* from_zero, uint32_t)   atomics on this rank's memory
//   uint64_t now_ns(), void pause(uint32_t spins)
//   void store_complete(uint32_t*)       writes 1, ordered after all stores before it, visible to the host
//   uint32_t group_max(uint32_t)         largest over the lanes that share a scale
//   P load_input<P>(const void*), void store_output(void*, P)        this rank's tensors
//   P load_exchange<P>(const void*), void store_exchange(void*, P)   exchange memory: own, and any rank's
// and for tagged.h
//   TaggedWord load_tagged(const TaggedWord*), void store_tagged(TaggedWord*, TaggedWord)   one access each, which no other
//                                        splits: the whole word or the one before; system scope, ordered with nothing else
//   void push_stores()                   all stores of this lane so far are performed
//   uint32_t group_lane(), group_get(uint32_t value, uint32_t lane)   which of the lanes that share a scale this one is;
//                                        and what `value` is on another of them
#pragma once

#include "call.h"
#include "failure.h"
#include "layout.h"
#include "tagged_word.h"

namespace splitrank::quick_reduce {

// This rank's own memory of a slot; no peer sees it. Kept on the device, so that a replayed graph advances it.
struct alignas(kLine) SlotState {
    uint64_t sequence;  // uses so far
    uint32_t holder;    // id of the call that runs on it, 0 if none: the ticket
};

// A communicator as the device sees it. Passed by value.
struct View {
    std::byte* regions[kMaxWorldSize];  // exchange memory of every rank, as mapped here
    SlotState* slots;                   // [num_slots + num_tagged_slots], local
    Failure* failure;                   // local, readable by the host
    const uint64_t* host_abort;         // local, writable by the host while a kernel spins; polled seldom
    uint32_t rank;
    RegionShape shape;
};

// The ticket, by one lane of a block. The uses are read when the ticket is taken and not earlier: beside a call that is
// just ending one would read its number, take the ticket that it gives back, and write where its last message is still
// being read. gpu/executor.h does both in one access.
struct Taken {
    uint32_t holder;  // the call that already runs, 0 if none
    uint64_t uses;
};
// In two steps, the first of which need not wait for the memory.
template <class Exec>
QR_DEVICE uint64_t ask_for_ticket(Exec& exec, SlotState& state, uint32_t id) {
    return exec.exchange(&state.holder, id);
}
template <class Exec>
QR_DEVICE Taken take_ticket(Exec&, SlotState& state, uint32_t, uint64_t answer) {
    return {uint32_t(answer), answer == 0 ? state.sequence : 0};
}
template <class Exec>
QR_DEVICE void give_ticket(Exec& exec, SlotState& state, uint64_t uses) {
    state.sequence = uses;
    exec.exchange(&state.holder, 0);
}
// How the other lanes learn the uses: told before all lanes meet, heard after it.
template <class Exec>
QR_DEVICE void tell_uses(Exec&, uint64_t) {}
template <class Exec>
QR_DEVICE uint64_t hear_uses(Exec&, const SlotState& state) {
    return state.sequence;
}

template <class Exec, class Layout, int W>
class Handshake {
  public:
    QR_DEVICE Handshake(Exec& exec, const View& view, const Layout& layout, const Call& call, uint32_t slot)
        : exec_(exec), view_(view), layout_(layout), call_(call), slot_(slot) {}

    // Takes the slot's ticket. False: the communicator is poisoned or another call is running.
    QR_DEVICE bool begin() {
        claim();
        return settle();
    }

    // The same in two steps, for what can be done between them: nothing that a peer would see.
    QR_DEVICE void claim() {
        is_fit_ = true;
        answer_ = 0;
        if (exec_.lane() == 0) answer_ = ask_for_ticket(exec_, view_.slots[slot_], call_.id);
        if (exec_.lane() == exec_.num_lanes() / 2) {
            const uint64_t abort = exec_.load_flag(&control(view_.rank)->abort);
            if (abort != 0) is_fit_ = fail(FailureKind::kAborted, 0, uint32_t(abort - 1), 0, abort);
        }
    }
    QR_DEVICE bool settle() {
        SlotState& state = view_.slots[slot_];
        if (exec_.lane() == 0) {
            const Taken taken = take_ticket(exec_, state, call_.id, answer_);
            if (taken.holder != 0) is_fit_ = fail(FailureKind::kOverlap, 0, view_.rank, call_.id, taken.holder);
            tell_uses(exec_, taken.uses);
        }
        const bool ok = exec_.all(is_fit_);
        sequence_ = hear_uses(exec_, state) + 1;
        return ok;
    }

    // The next use of the slot, after one tile is done.
    QR_DEVICE void advance() { ++sequence_; }

    // Gives the ticket back, after the uses before the present number.
    QR_DEVICE void end() {
        exec_.all(true);  // every lane has read the sequence and is done with the slot
        if (exec_.lane() == 0) give_ticket(exec_, view_.slots[slot_], sequence_ - 1);
    }

    // The same after the one use of a slot that is done when all lanes are. False if not all are `ok`.
    QR_DEVICE bool end_if(bool ok) {
        ok = exec_.all(ok);
        if (ok && exec_.lane() == 0) give_ticket(exec_, view_.slots[slot_], sequence_);
        return ok;
    }

    // Goes on where `other` is: for a block that has several slots in hand (gpu/kernels.h).
    QR_DEVICE void become(const Handshake& other) {
        slot_ = other.slot_;
        sequence_ = other.sequence_;
    }
    QR_DEVICE bool has_begun() const { return sequence_ != 0; }

    QR_DEVICE Phase first() const { return first_phase(sequence_); }
    QR_DEVICE uint64_t sequence() const { return sequence_; }

    // Where `source` writes for `reader` in this phase.
    QR_DEVICE std::byte* data(uint32_t reader, Phase phase, uint32_t source) const {
        return view_.regions[reader] + layout_.data(slot_, phase, peer_index<W>(reader, source));
    }

    // Where `source` writes the first row of a tagged slot for `reader`; and one of the rows behind it.
    QR_DEVICE std::byte* tagged(uint32_t reader, uint32_t source) const {
        return view_.regions[reader] + layout_.tagged(slot_, first(), peer_index<W>(reader, source));
    }
    QR_DEVICE TaggedWord* word(std::byte* place, uint32_t row, uint32_t of_row) const {
        return reinterpret_cast<TaggedWord*>(place + row * layout_.row_stride()) + of_row;
    }
    QR_DEVICE uint32_t tag() const { return tag_of(sequence_); }

    // Tells every peer that this rank's data of `phase` is complete.
    QR_DEVICE void publish(Phase phase) {
        exec_.release_block();
        for (uint32_t peer = exec_.lane(); peer < W; peer += exec_.num_lanes())
            if (peer != view_.rank) exec_.store_flag(flag(peer, phase, view_.rank), expected());
    }

    // Waits for the data of every peer. False: somebody failed, and it is on record.
    QR_DEVICE bool await(Phase phase) {
        bool ok = true;
        for (uint32_t peer = exec_.lane(); peer < W && ok; peer += exec_.num_lanes())
            if (peer != view_.rank) ok = await_peer(phase, peer);
        return exec_.all(ok);
    }

    // The same, and nobody had given up by then. For who has read memory that a peer owns: one that gives up goes on to
    // use it for something else, but raises the abort words first.
    QR_DEVICE bool await_unaborted(Phase phase) {
        bool ok = true;
        if (exec_.lane() == exec_.num_lanes() / 2)  // while other lanes await
            if (const uint64_t abort = exec_.load_flag(&control(view_.rank)->abort); abort != 0)
                ok = fail(FailureKind::kAborted, number(phase), uint32_t(abort - 1), expected(), 0);
        const bool arrived = await(phase);
        return exec_.all(ok) && arrived;
    }

    // A tagged slot's header goes to every peer: the whole flag, of which the words' tags are a part. And of what the
    // `num_rows` of this use leave as it was, one word, lest any grow so old that its tag comes up again.
    QR_DEVICE void announce(uint32_t num_rows) {
        const uint32_t tag_part = tag() << (32 - kTagBits);
        for (uint32_t peer = lane_from_the_end(); peer < W; peer += exec_.num_lanes()) {
            if (peer == view_.rank) continue;
            std::byte* place = tagged(peer, view_.rank);
            exec_.store_tagged(word(place, header_row(), 0),
                               {{uint32_t(expected()), uint32_t(expected() >> 32), 0, tag_part}});
            const uint32_t refreshed = refreshed_word(sequence_, header_row() * Exec::kWave);
            if (refreshed / Exec::kWave >= num_rows)
                exec_.store_tagged(word(place, refreshed / Exec::kWave, refreshed % Exec::kWave), {{0, 0, 0, tag_part}});
        }
    }

    // Waits until `have_come()`, which looks at words of `peer`'s, and until that peer's header is the right one. Of one
    // lane alone: false on one is to be told to all.
    template <class HaveCome>
    QR_DEVICE bool await_words(uint32_t peer, HaveCome&& have_come) {
        const TaggedWord* header = word(tagged(view_.rank, peer), header_row(), 0);
        const uint32_t bit = 1u << peer;
        uint32_t polls = 0;
        // Nothing promises when a store without a fence behind it arrives, and the peer may wait for this lane's in turn.
        const auto look = [&] {
            if (++polls == kSpinsPerLook) exec_.push_stores();
            TaggedWord head{};
            if ((confirmed_ & bit) == 0) head = exec_.load_tagged(header);
            const bool all_there = have_come();
            if ((confirmed_ & bit) == 0) {
                const uint64_t flag = uint64_t(head.part[1]) << 32 | head.part[0];
                if (flag != expected()) return flag;
                confirmed_ |= bit;
            }
            return all_there ? expected() : expected() - 1;
        };
        return await_flag<kPatience>(first(), peer, look);
    }

    // The host has not prepared this call (registered.h). Always false.
    QR_DEVICE bool refuse() {
        if (exec_.lane() == 0) fail(FailureKind::kMismatch, 0, view_.rank, expected(), 0);
        return exec_.all(false);
    }

  private:
    static constexpr uint32_t kSpinsPerLook = 256;  // polls between two looks at abort words and the clock
    // Tagged words come one after the other, and a pause of 50 ns for each would add up.
    static constexpr uint32_t kPatience = 128;
    // Many lanes may wait at once, and the host's word is across the bus: if each of 65,000 looked at every turn, that
    // would take longer than what they wait for, on both ranks alternately and without end.
    static constexpr uint32_t kLooksPerHost = 16;

    // 24 bits of fingerprint, 40 of sequence. 32 would not do: after 2^31 one-shot calls, the flag that the last two-shot
    // call has left would look like one from the future.
    static constexpr int kSequenceBits = 40;

    QR_DEVICE uint64_t expected() const {
        return uint64_t(call_.fingerprint) << kSequenceBits | (sequence_ & ((uint64_t(1) << kSequenceBits) - 1));
    }
    QR_DEVICE uint64_t* flag(uint32_t reader, Phase phase, uint32_t source) const {
        const uint64_t offset = layout_.flag(slot_, phase, peer_index<W>(reader, source));
        return reinterpret_cast<uint64_t*>(view_.regions[reader] + offset);
    }
    QR_DEVICE uint32_t header_row() const { return view_.shape.num_rows - 1; }
    // The last lanes have the least to do in a small message.
    QR_DEVICE uint32_t lane_from_the_end() const { return exec_.num_lanes() - 1 - exec_.lane(); }
    QR_DEVICE Control* control(uint32_t rank) const { return reinterpret_cast<Control*>(view_.regions[rank]); }

    QR_DEVICE bool await_peer(Phase phase, uint32_t peer) {
        const uint64_t* address = flag(view_.rank, phase, peer);
        return await_flag(phase, peer, [&] { return exec_.load_flag(address); });
    }

    // `look` reads the flag that `peer` writes in this phase. With patience it pauses that much later.
    template <uint32_t Patience = 1, class Look>
    QR_DEVICE bool await_flag(Phase phase, uint32_t peer, Look&& look) {
        uint64_t began = 0;
        for (uint32_t spins = 0;; ++spins) {
            const uint64_t seen = look();
            if (seen == expected()) return true;
            if (const FailureKind kind = judge(seen); kind != FailureKind::kNone)
                return fail(kind, number(phase), peer, expected(), seen);
            if (spins % kSpinsPerLook == kSpinsPerLook - 1) {
                const uint64_t now = exec_.now_ns();
                if (began == 0) began = now;
                const bool asks_host = spins / kSpinsPerLook % kLooksPerHost == kLooksPerHost - 1;
                if (const uint64_t abort = aborted(asks_host); abort != 0)
                    return fail(FailureKind::kAborted, number(phase), uint32_t(abort - 1), expected(), seen);
                // Look once more: this lane itself may have been away for that long.
                if (now - began > call_.timeout_ns && look() == seen)
                    return fail(FailureKind::kTimeout, number(phase), peer, expected(), seen);
            }
            exec_.pause(spins / Patience);
        }
    }

    // A value that is not the expected one: older is fine, anything else can never become right.
    QR_DEVICE FailureKind judge(uint64_t seen) const {
        const int64_t lead = int64_t((seen - sequence_) << (64 - kSequenceBits));  // its sign, and whether it is 0
        if (lead == 0) return FailureKind::kMismatch;
        return lead > 0 ? FailureKind::kAhead : FailureKind::kNone;
    }

    QR_DEVICE uint64_t aborted(bool asks_host) {
        const uint64_t word = exec_.load_flag(&control(view_.rank)->abort);
        return word != 0 || !asks_host ? word : exec_.load_flag(view_.host_abort);
    }

    // Records the first failure of this rank and raises every rank's abort word. Always false.
    QR_DEVICE bool fail(FailureKind kind, uint32_t phase, uint32_t peer, uint64_t expected, uint64_t seen) {
        if (exec_.claim(&view_.failure->kind, uint32_t(kind))) {
            Failure& record = *view_.failure;
            record.rank = view_.rank;
            record.slot = slot_;
            record.phase = phase;
            record.peer = peer;
            record.expected = expected;
            record.seen = seen;
            exec_.store_complete(&record.complete);
        }
        // Also if a peer was first: it may have died before it had told everybody.
        const uint64_t first = exec_.load_flag(&control(view_.rank)->abort);
        for (uint32_t rank = 0; rank < W; ++rank)
            exec_.store_flag(&control(rank)->abort, first != 0 ? first : uint64_t(1) + view_.rank);
        return false;
    }

    QR_DEVICE static uint32_t number(Phase phase) { return phase == kSecond ? 2 : 1; }

    Exec& exec_;
    const View& view_;
    const Layout& layout_;
    const Call& call_;
    uint32_t slot_;
    uint64_t sequence_ = 0;
    // Of a claim, until it is settled.
    uint64_t answer_ = 0;  // to the question for the ticket
    bool is_fit_ = true;
    uint32_t confirmed_ = 0;  // peers whose header this lane has seen
};

}  // namespace splitrank::quick_reduce
