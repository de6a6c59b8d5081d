// A small seeded generator: the same schedule on every machine.
#pragma once

#include <cstdint>

namespace interleaving {

inline uint64_t mix(uint64_t x) {  // splitmix64
    x += 0x9e3779b97f4a7c15u;
    x = (x ^ (x >> 30)) * 0xbf58476d1ce4e5b9u;
    x = (x ^ (x >> 27)) * 0x94d049bb133111ebu;
    return x ^ (x >> 31);
}

class Random {
  public:
    explicit Random(uint64_t seed) : state_(mix(seed)) {}

    uint64_t next() { return mix(state_++); }
    uint32_t below(uint32_t bound) { return uint32_t((next() >> 32) * bound >> 32); }
    uint32_t between(uint32_t first, uint32_t last) { return first + below(last - first + 1); }
    bool chance(double probability) { return double(next() >> 11) * 0x1p-53 < probability; }

  private:
    uint64_t state_;
};

}  // namespace interleaving
