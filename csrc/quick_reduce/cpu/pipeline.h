// How one host thread runs a call: it plays all slots in turn, so that peers seldom wait for each other.
#pragma once

#include <new>

#include "../one_shot.h"
#include "../two_shot.h"

namespace splitrank::quick_reduce {

constexpr uint32_t kMaxSlots = 64;

// The handshakes of a call's slots, without the heap.
template <class Exec, class Layout, int W>
class Slots {
  public:
    using Sync = Handshake<Exec, Layout, W>;

    Slots(Exec& exec, const View& view, const Layout& layout, const Call& call) : num_slots_(call.num_slots) {
        for (uint32_t slot = 0; slot < num_slots_; ++slot) new (&places_[slot]) Sync(exec, view, layout, call, slot);
    }
    bool begin() {
        for (uint32_t slot = 0; slot < num_slots_; ++slot)
            if (!places_[slot].sync.begin()) return false;
        return true;
    }
    void end() {
        for (uint32_t slot = 0; slot < num_slots_; ++slot) places_[slot].sync.end();
    }
    Sync& of(uint64_t tile) { return places_[tile % num_slots_].sync; }

  private:
    union Place {
        Place() {}
        Sync sync;
    };
    const uint32_t num_slots_;
    Place places_[kMaxSlots];
};

// Every rank takes the same steps in the same order, and a step waits only for earlier ones: no deadlock. A tile is
// reduced `depth` tiles after it was sent, and received `depth` after that, when the peers' parts have long arrived.
template <class Exec, class Type, class Codec, class Layout, int W>
bool run_two_shot(Exec& exec, const View& view, const Call& call) {
    const Layout layout(view.shape);
    Slots<Exec, Layout, W> slots(exec, view, layout, call);
    if (!slots.begin()) return false;
    TwoShot<Exec, Type, Codec, Layout, W> two_shot(exec, view, call);
    const uint64_t depth = (call.num_slots - 1) / 2;  // tile t + num_slots takes the slot of t: after step t + 2 depth
    for (uint64_t step = 0; step < call.num_tiles + 2 * depth; ++step) {
        if (const uint64_t tile = step; tile < call.num_tiles) two_shot.send(slots.of(tile), tile);
        if (const uint64_t tile = step - depth; step >= depth && tile < call.num_tiles)
            if (!two_shot.reduce(slots.of(tile), tile)) return false;
        if (const uint64_t tile = step - 2 * depth; step >= 2 * depth) {
            if (!two_shot.receive(slots.of(tile), tile)) return false;
            slots.of(tile).advance();
        }
    }
    slots.end();
    return true;
}

template <class Exec, class Type, class Codec, class Layout, int W>
bool run_one_shot(Exec& exec, const View& view, const Call& call) {
    const Layout layout(view.shape);
    Slots<Exec, Layout, W> slots(exec, view, layout, call);
    if (!slots.begin()) return false;
    OneShot<Exec, Type, Codec, Layout, W> one_shot(exec, view, call);
    const uint64_t depth = call.num_slots - 1;
    for (uint64_t step = 0; step < call.num_tiles + depth; ++step) {
        if (const uint64_t tile = step; tile < call.num_tiles) one_shot.send(slots.of(tile), tile);
        if (const uint64_t tile = step - depth; step >= depth) {
            if (!one_shot.reduce(slots.of(tile), tile)) return false;
            slots.of(tile).advance();
        }
    }
    slots.end();
    return true;
}

}  // namespace splitrank::quick_reduce
