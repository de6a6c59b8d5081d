// Weak memory: what a lane stores to exchange memory waits here, and becomes visible one store at a time, in any order.
// Only release_block() empties the buffer for certain; two stores to one address keep their order, as on every machine.
#pragma once

#include <cstdint>
#include <cstring>
#include <vector>

#include "random.h"

namespace interleaving {

class StoreBuffer {
  public:
    void push(void* to, const void* from, uint32_t num_bytes, bool is_flag) {
        Store& store = stores_.emplace_back();
        store.to = static_cast<std::byte*>(to);
        store.num_bytes = num_bytes;
        store.is_flag = is_flag;
        std::memcpy(store.bytes, from, num_bytes);
    }

    bool empty() const { return stores_.empty(); }
    void clear() { stores_.clear(); }

    // The newest flag stored to `address`, which its own writer sees before anybody else; null if none.
    const uint64_t* find_flag(const uint64_t* address) const {
        for (size_t i = stores_.size(); i-- > 0;)
            if (stores_[i].is_flag && stores_[i].to == reinterpret_cast<const std::byte*>(address))
                return reinterpret_cast<const uint64_t*>(stores_[i].bytes);
        return nullptr;
    }

    // Makes one store visible. True if it was a flag, for which somebody may be waiting.
    bool drain_one(Random& random) {
        size_t chosen = random.below(uint32_t(stores_.size()));
        for (size_t older = 0; older < chosen;) {
            const bool must_go_first = overlap(stores_[older], stores_[chosen]);
            chosen = must_go_first ? older : chosen;
            older = must_go_first ? 0 : older + 1;
        }
        const Store store = stores_[chosen];
        std::memcpy(store.to, store.bytes, store.num_bytes);
        stores_.erase(stores_.begin() + ptrdiff_t(chosen));
        return store.is_flag;
    }

  private:
    struct Store {
        std::byte* to;
        uint32_t num_bytes;
        bool is_flag;
        alignas(16) std::byte bytes[128];  // the largest packet
    };

    static bool overlap(const Store& a, const Store& b) {
        return a.to < b.to + b.num_bytes && b.to < a.to + a.num_bytes;
    }

    std::vector<Store> stores_;
};

}  // namespace interleaving
