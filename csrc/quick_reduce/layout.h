// Where things lie in a rank's exchange memory. Every rank has one region, mapped by all its peers.
//
// Addresses depend on (slot, phase, source rank) only, never on a call's size: the layout this engine was born from put
// the second phase's flags behind as many first-phase flags as the call had blocks, so that a larger next call
// overwrote a flag that a slow rank still awaited. No rank sends to itself: a region has places for its peers alone.
#pragma once

#include "portability.h"

namespace splitrank::quick_reduce {

// The first phase has two places, used in turn: a one-shot call has no second phase that would tell the sender that its
// last message was read, but a peer's message k + 1 tells that it has read message k, so k + 2 may take k's place.
enum Phase : uint32_t { kFirstEven = 0, kFirstOdd = 1, kSecond = 2 };
constexpr uint32_t kNumPhases = 3;
constexpr uint32_t kNumFirstPhases = 2;

QR_FN Phase first_phase(uint64_t sequence) { return sequence & 1 ? kFirstOdd : kFirstEven; }

constexpr uint64_t kLine = 64;  // bytes of a flag's own cache line
constexpr uint64_t kControlBytes = 4096;

struct RegionShape {
    uint32_t world_size;
    uint32_t num_slots;
    uint64_t segment_bytes;         // of one encoded segment at most; a multiple of 128
    uint32_t num_tagged_slots = 0;  // behind the others: slots of tagged words alone (tagged.h)
    uint32_t num_rows = 0;          // of a place for such words, the last for its header
    uint32_t row_bytes = 0;         // what a wave writes at once
    uint64_t tagged_begin = 0;      // where they lie: counted by the host, once
};

// Head of a region. Any rank may raise the abort word of any other; nobody lowers it.
struct Control {
    uint64_t abort;  // 0, or 1 + the rank that failed first as far as this rank knows
};

// Which of `reader`'s peers `source` is, counted from 0: by their distance, so that a GPU lane, which unrolls its loops over
// the peers, knows all but the region's address beforehand.
template <int W>
QR_FN uint32_t peer_index(uint32_t reader, uint32_t source) {
    return ((W & (W - 1)) == 0 ? reader ^ source : (source + W - reader) % W) - 1;
}

// `peer` is a peer_index everywhere.
class IsolatedLayout {
  public:
    QR_FN IsolatedLayout(const RegionShape& shape) : shape_(shape) {}

    QR_FN uint64_t flag(uint32_t slot, Phase phase, uint32_t peer) const {
        return kControlBytes + place(slot, phase, peer) * kLine;
    }
    QR_FN uint64_t data(uint32_t slot, Phase phase, uint32_t peer) const {
        return data_begin() + place(slot, phase, peer) * shape_.segment_bytes;
    }
    // First row of a tagged slot, in the first phase, the only one it has. The same rows of all slots lie together: what
    // a message uses is in one piece.
    QR_FN uint64_t tagged(uint32_t slot, Phase phase, uint32_t peer) const {
        const uint64_t rows = uint64_t(phase * uint32_t(num_peers()) + peer) * shape_.num_rows;
        return shape_.tagged_begin + rows * row_stride() + uint64_t(slot - shape_.num_slots) * shape_.row_bytes;
    }
    // From a row of a tagged slot to its next.
    QR_FN uint64_t row_stride() const { return uint64_t(shape_.num_tagged_slots) * shape_.row_bytes; }
    QR_FN uint64_t data_end() const { return data_begin() + num_places() * shape_.segment_bytes; }
    QR_FN uint64_t num_bytes() const {
        return data_end() + kNumFirstPhases * num_peers() * shape_.num_rows * row_stride();
    }

  private:
    QR_FN uint64_t num_peers() const { return shape_.world_size - 1; }
    QR_FN uint64_t place(uint64_t slot, uint64_t phase, uint64_t peer) const {
        return (slot * kNumPhases + phase) * num_peers() + peer;
    }
    QR_FN uint64_t num_places() const { return uint64_t(shape_.num_slots) * kNumPhases * num_peers(); }
    QR_FN uint64_t data_begin() const { return round_up(kControlBytes + num_places() * kLine, 4096); }

    RegionShape shape_;
};

// The same with slots for tagged words, behind all else.
QR_FN RegionShape with_tagged_slots(RegionShape shape, uint32_t num_slots, uint32_t num_rows, uint32_t row_bytes) {
    shape.num_tagged_slots = num_slots;
    shape.num_rows = num_rows;
    shape.row_bytes = row_bytes;
    shape.tagged_begin = IsolatedLayout(shape).data_end();
    return shape;
}

}  // namespace splitrank::quick_reduce
