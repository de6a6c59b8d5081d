// The protocol on a host thread: one lane a block, exchange memory shared between threads or processes.
#pragma once

#include <immintrin.h>
#include <sched.h>
#include <time.h>

#include <cstring>

#include "../packet.h"

namespace splitrank::quick_reduce {

class HostExecutor {
  public:
    static constexpr int kLaneElements = 32;  // a whole block of the codecs: no scale is shared between lanes
    static constexpr int kWave = 1;
    static constexpr int kUnroll = 1;

    uint32_t lane() const { return 0; }
    uint32_t num_lanes() const { return 1; }

    // Streaming stores are weakly ordered even on x86: the fence comes before the flag.
    void release_block() { _mm_sfence(); }
    bool all(bool ok) { return ok; }

    void store_flag(uint64_t* flag, uint64_t value) { __atomic_store_n(flag, value, __ATOMIC_RELEASE); }
    uint64_t load_flag(const uint64_t* flag) const { return __atomic_load_n(flag, __ATOMIC_ACQUIRE); }
    uint32_t exchange(uint32_t* word, uint32_t value) { return __atomic_exchange_n(word, value, __ATOMIC_ACQ_REL); }
    bool claim(uint32_t* word, uint32_t value) {
        uint32_t zero = 0;
        return __atomic_compare_exchange_n(word, &zero, value, false, __ATOMIC_ACQ_REL, __ATOMIC_ACQUIRE);
    }
    uint32_t arrive(uint32_t* counter) { return __atomic_fetch_add(counter, 1u, __ATOMIC_ACQ_REL); }
    void store_complete(uint32_t* word) { __atomic_store_n(word, 1u, __ATOMIC_RELEASE); }

    uint64_t now_ns() const {
        timespec now;
        clock_gettime(CLOCK_MONOTONIC, &now);
        return uint64_t(now.tv_sec) * 1'000'000'000u + uint64_t(now.tv_nsec);
    }
    // Ranks may outnumber the cores: after some hundred polls the peer may need this one. Beside other work a yield takes
    // milliseconds, and the clock and the abort word are looked at every 256 polls: so few of these may yield.
    void pause(uint32_t spins) const {
        spins < kSpinsBeforeYield || spins % kSpinsPerYield != 0 ? _mm_pause() : void(sched_yield());
    }

    uint32_t group_max(uint32_t value) const { return value; }

    template <class P>
    P load_input(const void* from) const {
        return load<P>(from);
    }
    template <class P>
    void store_output(void* to, const P& packet) const {
        std::memcpy(to, &packet, sizeof(P));
    }
    template <class P>
    P load_exchange(const void* from) const {
        return load<P>(from);
    }
    // Past the caches: overwriting lines that the peer has read would fetch them back from its core first.
    template <class P>
    void store_exchange(void* to, const P& packet) const {
        if constexpr (sizeof(P) % sizeof(Vector) == 0) {
            const auto* from = reinterpret_cast<const char*>(&packet);
            for (size_t i = 0; i < sizeof(P) / sizeof(Vector); ++i)
                stream(static_cast<Vector*>(to) + i, load<Vector>(from + i * sizeof(Vector)));
        } else {
            std::memcpy(to, &packet, sizeof(P));
        }
    }

  private:
    static constexpr uint32_t kSpinsBeforeYield = 512, kSpinsPerYield = 16;

#if defined(__AVX512F__)
    using Vector = __m512i;
    static void stream(Vector* to, Vector value) { _mm512_stream_si512(to, value); }
#elif defined(__AVX2__)
    using Vector = __m256i;
    static void stream(Vector* to, Vector value) { _mm256_stream_si256(to, value); }
#else
    using Vector = __m128i;
    static void stream(Vector* to, Vector value) { _mm_stream_si128(to, value); }
#endif

    template <class P>
    static P load(const void* from) {
        P packet;
        std::memcpy(&packet, from, sizeof(P));
        return packet;
    }
};

}  // namespace splitrank::quick_reduce
