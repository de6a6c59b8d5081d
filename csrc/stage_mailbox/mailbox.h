// A message from one pipeline stage to the next, once for all targets: wait until the place is free, store the parts and
// the header, then the flag; and on the other side await the flag, compare the header, copy, acknowledge.
//
// Message k of a ring lies in place k mod P. The sender may store it when the receiver has read message k - P, which the
// receiver's credit says: the number of the last message that it has read, stored to the sender's own memory. The flag is
// k, stored after everything else. A receiver accepts exactly the flag that it expects: an older one (k - P, or 0) has not
// been replaced yet; a newer one can never become right.
//
// A message is stored and copied by any number of blocks, which do not wait for each other: each awaits credit or flag by
// itself, and the last one to be done stores flag or credit, and advances the number, which is kept on the device.
//
// `Exec` is what quick_reduce/handshake.h says, and
//   uint32_t arrive(uint32_t* counter)   adds 1 and gives the value before. Called by one lane after release_block: what
//                                        the block has stored is performed for all ranks before; and whoever arrives later
//                                        has it, and all that is ordered before it, behind it.
#pragma once

#include <type_traits>

#include "../quick_reduce/failure.h"
#include "layout.h"

namespace splitrank::stage_mailbox {

using quick_reduce::FailureKind;

// What a stage knows of the first thing that went wrong. Lies where the host can read it while a kernel runs. `kind` is
// claimed first, `complete` is written last.
struct Failure {
    uint32_t kind;  // FailureKind
    uint32_t complete;
    uint32_t stage;
    uint32_t peer;              // whom it waited for, or who gave up first as far as this stage knows
    uint32_t waits_for_credit;  // 1: for a place to send to, 0: for a message
    uint32_t reserved;
    uint64_t sequence;  // of the message
    uint64_t seen;      // the flag, or the credit
    Header expected;    // of the call
    Header found;       // in the place, if the flag was right
};

// One direction of a stage's own memory; no peer sees it.
struct alignas(kLine) Counter {
    uint64_t sequence;  // messages so far
    uint32_t arrived;   // blocks of the present one that are done
};

// A stage as the device sees it. Passed by value.
struct View {
    std::byte* own;       // this stage's region
    std::byte* previous;  // region of the stage before, as mapped here: its credit, its abort word
    std::byte* next;      // region of the stage behind: places, flags, its abort word
    Counter* sent;
    Counter* received;
    Failure* failure;            // local, readable by the host
    const uint64_t* host_abort;  // local, writable by the host while a kernel spins; polled seldom
    uint32_t stage;
    uint32_t num_stages;
    Layout own_layout;
    Layout next_layout;
};

// One message, at the sender or at the receiver. Passed by value.
struct Message {
    std::byte* parts[kMaxParts];  // aligned to 16 bytes
    uint32_t num_parts;
    uint32_t num_blocks;
    Header header;
    uint64_t timeout_ns;  // of the wait
};

struct alignas(16) Packet {
    uint32_t words[4];
};

template <class Exec>
class Mailbox {
  public:
    QR_DEVICE Mailbox(Exec& exec, const View& view, const Message& message, uint32_t block)
        : exec_(exec), view_(view), message_(message), block_(block) {}

    // False: somebody failed, and it is on record.
    QR_DEVICE bool send() {
        const uint64_t sequence = view_.sent->sequence + 1;
        const uint32_t place = view_.next_layout.place(sequence);
        if (!exec_.all(begin() && await_credit(sequence))) return false;
        for (uint32_t word = exec_.lane(); block_ == 0 && word < kHeaderWords; word += exec_.num_lanes())
            exec_.store_exchange(header_word(view_.next, view_.next_layout, place, word), word_of(message_.header, word));
        QR_UNROLL  // a part's address is then an argument's, and none of a copy in a lane's memory
        for (uint32_t part = 0; part < kMaxParts; ++part) {
            if (part == message_.num_parts) break;
            std::byte* place_of_part = view_.next + view_.next_layout.data(place, part);
            copy(message_.parts[part], place_of_part,
                 [this](const auto* from, auto* to) { exec_.store_exchange(to, load_own(from)); });
        }
        if (is_last(*view_.sent)) {
            exec_.store_flag(flag(view_.next, view_.next_layout, place), sequence);
            advance(*view_.sent, sequence);
        }
        return true;
    }

    QR_DEVICE bool receive() {
        const uint64_t sequence = view_.received->sequence + 1;
        const uint32_t place = view_.own_layout.place(sequence);
        if (!exec_.all(begin() && await_message(sequence, place))) return false;
        QR_UNROLL
        for (uint32_t part = 0; part < kMaxParts; ++part) {
            if (part == message_.num_parts) break;
            const std::byte* place_of_part = view_.own + view_.own_layout.data(place, part);
            copy(place_of_part, message_.parts[part], [this](const auto* from, auto* to) {
                store_own(to, exec_.template load_exchange<std::remove_pointer_t<decltype(to)>>(from));
            });
        }
        if (is_last(*view_.received)) {
            exec_.store_flag(credit(view_.previous), sequence);
            advance(*view_.received, sequence);
        }
        return true;
    }

  private:
    static constexpr uint32_t kSpinsPerLook = 256;  // polls between two looks at abort words and the clock
    static constexpr uint32_t kLooksPerHost = 16;   // the host's word is across the bus

    QR_DEVICE uint32_t previous_stage() const { return (view_.stage + view_.num_stages - 1) % view_.num_stages; }
    QR_DEVICE uint32_t next_stage() const { return (view_.stage + 1) % view_.num_stages; }
    QR_DEVICE static uint64_t* abort_word(std::byte* region) { return reinterpret_cast<uint64_t*>(region); }
    QR_DEVICE static uint64_t* credit(std::byte* region) {
        return reinterpret_cast<uint64_t*>(region + kCreditOffset);
    }
    QR_DEVICE static uint64_t* flag(std::byte* region, const Layout& layout, uint32_t place) {
        return reinterpret_cast<uint64_t*>(region + layout.flag(place));
    }
    QR_DEVICE static uint64_t* header_word(std::byte* region, const Layout& layout, uint32_t place, uint32_t word) {
        return reinterpret_cast<uint64_t*>(region + layout.header(place)) + word;
    }
    QR_DEVICE static uint64_t word_of(const Header& header, uint32_t word) {
        return word == 0 ? header.step : word == 1 ? header.plan_hash : word == 2 ? header.part_bytes : header.kind;
    }

    // Of one lane: all others pass.
    QR_DEVICE bool begin() {
        if (exec_.lane() != 0) return true;
        const uint64_t abort = exec_.load_flag(abort_word(view_.own));
        return abort == 0 || fail(FailureKind::kAborted, uint32_t(abort - 1), 0, 0, abort, {});
    }

    // Message k takes the place of k - P.
    QR_DEVICE bool await_credit(uint64_t sequence) {
        if (exec_.lane() != 0 || sequence <= view_.next_layout.num_places()) return true;
        const uint64_t needed = sequence - view_.next_layout.num_places();
        const auto judge = [&](uint64_t seen) {
            return seen >= sequence ? FailureKind::kAhead : FailureKind::kNone;  // read before it was sent
        };
        return await(credit(view_.own), next_stage(), sequence, true, [&](uint64_t seen) { return seen >= needed; }, judge);
    }

    QR_DEVICE bool await_message(uint64_t sequence, uint32_t place) {
        if (exec_.lane() != 0) return true;
        const auto judge = [&](uint64_t seen) {
            return seen > sequence ? FailureKind::kAhead : FailureKind::kNone;
        };
        const uint64_t* address = flag(view_.own, view_.own_layout, place);
        if (!await(address, previous_stage(), sequence, false, [&](uint64_t seen) { return seen == sequence; }, judge))
            return false;
        Header found;
        found.step = exec_.template load_exchange<uint64_t>(header_word(view_.own, view_.own_layout, place, 0));
        found.plan_hash = exec_.template load_exchange<uint64_t>(header_word(view_.own, view_.own_layout, place, 1));
        found.part_bytes = exec_.template load_exchange<uint64_t>(header_word(view_.own, view_.own_layout, place, 2));
        found.kind = exec_.template load_exchange<uint64_t>(header_word(view_.own, view_.own_layout, place, 3));
        const Header& wanted = message_.header;
        if (found.step == wanted.step && found.plan_hash == wanted.plan_hash && found.part_bytes == wanted.part_bytes &&
            found.kind == wanted.kind)
            return true;
        return fail(FailureKind::kMismatch, previous_stage(), 0, sequence, sequence, found);
    }

    template <class IsRight, class Judge>
    QR_DEVICE bool await(const uint64_t* address, uint32_t peer, uint64_t sequence, bool for_credit, IsRight&& is_right,
                         Judge&& judge) {
        uint64_t began = 0;
        for (uint32_t spins = 0;; ++spins) {
            const uint64_t seen = exec_.load_flag(address);
            if (const FailureKind kind = judge(seen); kind != FailureKind::kNone)
                return fail(kind, peer, for_credit, sequence, seen, {});
            if (is_right(seen)) return true;
            if (spins % kSpinsPerLook == kSpinsPerLook - 1) {
                const uint64_t now = exec_.now_ns();
                if (began == 0) began = now;
                const bool asks_host = spins / kSpinsPerLook % kLooksPerHost == kLooksPerHost - 1;
                if (const uint64_t abort = aborted(asks_host); abort != 0)
                    return fail(FailureKind::kAborted, uint32_t(abort - 1), for_credit, sequence, seen, {});
                // Look once more: this lane itself may have been away for that long.
                if (now - began > message_.timeout_ns && exec_.load_flag(address) == seen)
                    return fail(FailureKind::kTimeout, peer, for_credit, sequence, seen, {});
            }
            exec_.pause(spins);
        }
    }

    QR_DEVICE uint64_t aborted(bool asks_host) {
        const uint64_t word = exec_.load_flag(abort_word(view_.own));
        return word != 0 || !asks_host ? word : exec_.load_flag(view_.host_abort);
    }

    // Moves this block's share of a part: packets of 16 bytes, and words of 4 at the end.
    template <class Move>
    QR_DEVICE void copy(const std::byte* from, std::byte* to, Move&& move) {
        const uint64_t num_packets = message_.header.part_bytes / sizeof(Packet);
        const uint64_t stride = uint64_t(message_.num_blocks) * exec_.num_lanes();
        const uint64_t first = uint64_t(block_) * exec_.num_lanes() + exec_.lane();
        const auto* packets = reinterpret_cast<const Packet*>(from);
        auto* targets = reinterpret_cast<Packet*>(to);
        for (uint64_t packet = first; packet < num_packets; packet += stride) move(packets + packet, targets + packet);
        const uint64_t num_words = message_.header.part_bytes % sizeof(Packet) / sizeof(uint32_t);
        const auto* words = reinterpret_cast<const uint32_t*>(packets + num_packets);
        auto* word_targets = reinterpret_cast<uint32_t*>(targets + num_packets);
        for (uint64_t word = first; word < num_words; word += stride) move(words + word, word_targets + word);
    }

    template <class P>
    QR_DEVICE P load_own(const P* from) const {
        if constexpr (sizeof(P) == sizeof(Packet))
            return exec_.template load_input<P>(from);
        else
            return *from;
    }
    template <class P>
    QR_DEVICE void store_own(P* to, const P& value) const {
        if constexpr (sizeof(P) == sizeof(Packet))
            exec_.store_output(to, value);
        else
            *to = value;
    }

    // Whether this lane is the one that goes on when all blocks are done.
    QR_DEVICE bool is_last(Counter& counter) {
        exec_.release_block();
        return exec_.lane() == 0 && exec_.arrive(&counter.arrived) == message_.num_blocks - 1;
    }
    // For the next kernel of the stream; every lane of this one has read the number.
    QR_DEVICE static void advance(Counter& counter, uint64_t sequence) {
        counter.sequence = sequence;
        counter.arrived = 0;
    }

    // Records the first failure of this stage, and raises its abort word and its neighbours'. Always false.
    QR_DEVICE bool fail(FailureKind kind, uint32_t peer, bool for_credit, uint64_t sequence, uint64_t seen,
                        const Header& found) {
        if (exec_.claim(&view_.failure->kind, uint32_t(kind))) {
            Failure& record = *view_.failure;
            record.stage = view_.stage;
            record.peer = peer;
            record.waits_for_credit = for_credit;
            record.sequence = sequence;
            record.seen = seen;
            record.expected.step = message_.header.step;  // word by word: copies of a whole would lie in a lane's memory
            record.expected.plan_hash = message_.header.plan_hash;
            record.expected.part_bytes = message_.header.part_bytes;
            record.expected.kind = message_.header.kind;
            record.found.step = found.step;
            record.found.plan_hash = found.plan_hash;
            record.found.part_bytes = found.part_bytes;
            record.found.kind = found.kind;
            exec_.store_complete(&record.complete);
        }
        // Also if a neighbour was first: it may have died before it had told everybody.
        const uint64_t first = exec_.load_flag(abort_word(view_.own));
        const uint64_t word = first != 0 ? first : uint64_t(1) + view_.stage;
        exec_.store_flag(abort_word(view_.own), word);
        exec_.store_flag(abort_word(view_.previous), word);
        exec_.store_flag(abort_word(view_.next), word);
        return false;
    }

    Exec& exec_;
    const View& view_;
    const Message& message_;
    const uint32_t block_;
};

}  // namespace splitrank::stage_mailbox
