// The layout and the wait that this protocol was made to replace, kept as policies that must fail.
//
// The second phase lies behind as many first-phase places as the call has slots, the first phase has one place, the
// flag is a colour that the host counts, and the wait knows nothing but that colour.
#pragma once

#include "quick_reduce/handshake.h"

namespace interleaving {

namespace quick_reduce = splitrank::quick_reduce;

class HistoricalAddresses {
  public:
    HistoricalAddresses(const quick_reduce::RegionShape& shape, const quick_reduce::Call& call)
        : shape_(shape), num_slots_(call.num_slots) {}

    uint64_t flag(uint32_t slot, quick_reduce::Phase phase, uint32_t peer) const {
        return quick_reduce::kControlBytes + place(slot, phase, peer) * quick_reduce::kLine;
    }
    uint64_t data(uint32_t slot, quick_reduce::Phase phase, uint32_t peer) const {
        const uint64_t flags = 2 * uint64_t(shape_.num_slots) * num_peers() * quick_reduce::kLine;
        return quick_reduce::kControlBytes + flags + place(slot, phase, peer) * shape_.segment_bytes;
    }

  private:
    uint64_t num_peers() const { return shape_.world_size - 1; }
    uint64_t place(uint64_t slot, quick_reduce::Phase phase, uint64_t peer) const {
        const uint64_t behind = phase == quick_reduce::kSecond ? num_slots_ : 0;  // the mistake
        return (behind + slot) * num_peers() + peer;
    }

    quick_reduce::RegionShape shape_;
    uint64_t num_slots_;
};

// What the reader of a flag accepts.
struct Equal {
    static bool accept(uint64_t seen, uint64_t colour) { return seen == colour; }
};
struct AtLeast {
    static bool accept(uint64_t seen, uint64_t colour) { return seen >= colour; }
};

template <class Wait>
struct HistoricalLayout : HistoricalAddresses {
    using HistoricalAddresses::HistoricalAddresses;
};

}  // namespace interleaving

// The shipped handshake with another wait. Historical calls have no fingerprint, so that a flag is the colour alone.
template <class Exec, class Wait, int W>
class splitrank::quick_reduce::Handshake<Exec, interleaving::HistoricalLayout<Wait>, W>
    : public Handshake<Exec, interleaving::HistoricalAddresses, W> {
    using Base = Handshake<Exec, interleaving::HistoricalAddresses, W>;

  public:
    Handshake(Exec& exec, const View& view, const interleaving::HistoricalLayout<Wait>& layout, const Call& call,
              uint32_t slot)
        : Base(exec, view, layout, call, slot), exec_(exec), view_(view), layout_(layout), slot_(slot) {}

    bool await(Phase phase) {
        for (uint32_t peer = exec_.lane(); peer < W; peer += exec_.num_lanes()) {
            if (peer == view_.rank) continue;
            const uint64_t offset = layout_.flag(slot_, phase, peer_index<W>(view_.rank, peer));
            const auto* flag = reinterpret_cast<const uint64_t*>(view_.regions[view_.rank] + offset);
            while (!Wait::accept(exec_.load_flag(flag), this->sequence())) exec_.pause(0);
        }
        return exec_.all(true);
    }

  private:
    Exec& exec_;
    const View& view_;
    const interleaving::HistoricalLayout<Wait>& layout_;
    const uint32_t slot_;
};
