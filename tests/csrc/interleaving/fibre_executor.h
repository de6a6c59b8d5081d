// The protocol on fibres: every flag, exchange store and block sync is a scheduling point, stores are weakly ordered.
#pragma once

#include <cstring>

#include "quick_reduce/handshake.h"
#include "quick_reduce/packet.h"
#include "scheduler.h"

namespace interleaving {

using splitrank::quick_reduce::TaggedWord;

// Where the lanes that run one slot of one stream meet.
class Block {
  public:
    void reset(uint32_t num_lanes) {
        num_lanes_ = num_lanes;
        arrived_ = generation_ = 0;
        all_ = true;
    }

    bool meet(Scheduler& scheduler, bool ok) {
        all_ = all_ && ok;
        waiting_[arrived_++] = scheduler.current();
        if (arrived_ < num_lanes_) {
            for (const uint64_t generation = generation_; generation == generation_;) scheduler.block();
            return result_;
        }
        result_ = all_;
        all_ = true;
        arrived_ = 0;
        ++generation_;
        for (uint32_t i = 0; i < num_lanes_; ++i) scheduler.wake(waiting_[i]);
        scheduler.point();
        return result_;
    }

    uint32_t num_lanes() const { return num_lanes_; }
    static constexpr uint32_t kMaxLanes = 4;

  private:
    uint32_t num_lanes_ = 1, arrived_ = 0, waiting_[kMaxLanes];
    uint64_t generation_ = 0;
    bool all_ = true, result_ = true;
};

class FibreExecutor {
  public:
    static constexpr int kLaneElements = 32;
    static constexpr int kWave = 1;
    static constexpr int kUnroll = 2;

    FibreExecutor(Scheduler& scheduler, Block& block, uint32_t lane)
        : scheduler_(scheduler), block_(block), lane_(lane) {}

    // As gpu/kernels.h makes its own: of the lane that has begun a kernel last.
    FibreExecutor() : FibreExecutor(*begun) {}
    static inline FibreExecutor* begun = nullptr;

    uint32_t lane() const { return lane_; }
    uint32_t num_lanes() const { return block_.num_lanes(); }

    void release_block() {
        scheduler_.drain_own();
        block_.meet(scheduler_, true);
    }
    bool all(bool ok) { return block_.meet(scheduler_, ok); }

    // Flags are in flight like data; release_block and nothing else orders the two.
    void store_flag(uint64_t* flag, uint64_t value) {
        scheduler_.store(flag, &value, sizeof(value), true);
        scheduler_.point();
    }
    uint64_t load_flag(const uint64_t* flag) {
        scheduler_.point();
        const uint64_t* own = scheduler_.own_flag(flag);
        return own != nullptr ? *own : *flag;
    }
    // Whole words: one store, one load. Like a flag, it may come before or after any other store.
    void store_tagged(TaggedWord* to, const TaggedWord& word) {
        scheduler_.store(to, &word, sizeof(word), true);
        scheduler_.point();
    }
    TaggedWord load_tagged(const TaggedWord* from) {
        scheduler_.point();
        return *from;
    }
    void push_stores() { scheduler_.drain_own(); }
    uint32_t group_lane() const { return 0; }
    uint32_t group_get(uint32_t value, uint32_t) const { return value; }
    uint32_t exchange(uint32_t* word, uint32_t value) {
        scheduler_.point();
        std::swap(*word, value);
        return value;
    }
    bool claim(uint32_t* word, uint32_t value) {
        scheduler_.point();
        return *word == 0 ? (*word = value, true) : false;
    }
    uint32_t arrive(uint32_t* counter) {
        scheduler_.point();
        return (*counter)++;
    }
    void store_complete(uint32_t* word) { *word = 1; }

    uint64_t now_ns() const { return scheduler_.now_ns(); }
    void pause(uint32_t) { scheduler_.poll_failed(); }

    uint32_t group_max(uint32_t value) const { return value; }

    template <class P>
    P load_input(const void* from) const {
        scheduler_.point();  // a registered input is a peer's
        return load<P>(from);
    }
    template <class P>
    void store_output(void* to, const P& packet) const {
        std::memcpy(to, &packet, sizeof(P));
    }
    template <class P>
    P load_exchange(const void* from) const {
        scheduler_.point();
        return load<P>(from);
    }
    template <class P>
    void store_exchange(void* to, const P& packet) const {
        scheduler_.store(to, &packet, sizeof(P), false);
        scheduler_.point();
    }

  private:
    template <class P>
    static P load(const void* from) {
        P packet;
        std::memcpy(&packet, from, sizeof(P));
        return packet;
    }

    Scheduler& scheduler_;
    Block& block_;
    const uint32_t lane_;
};

}  // namespace interleaving
