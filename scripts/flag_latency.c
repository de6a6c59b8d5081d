// How long a flag takes from one core to the other, in ns: the floor of every handshake on shared memory. Virtual cores
// move between near and far ones, so benchmarks print it beside their numbers.
#include <stdint.h>
#include <time.h>

static double now_ns(void) {
    struct timespec now;
    clock_gettime(CLOCK_MONOTONIC, &now);
    return 1e9 * (double)now.tv_sec + (double)now.tv_nsec;
}

// Half a round trip, the mean of `rounds`; flags hold `start` before. Both sides call with the flags swapped; one of them
// is `first`. Negative if the other side was silent for ten seconds.
double flag_latency(uint64_t* own, uint64_t* peers, uint64_t start, uint64_t rounds, int first) {
    const double began = now_ns();
    for (uint64_t round = 1; round <= rounds; ++round) {
        if (first) __atomic_store_n(peers, start + round, __ATOMIC_RELEASE);
        for (uint64_t spins = 0; __atomic_load_n(own, __ATOMIC_ACQUIRE) < start + round; ++spins) {
            __builtin_ia32_pause();
            if (spins % 65536 == 65535 && now_ns() - began > 1e10) return -1;
        }
        if (!first) __atomic_store_n(peers, start + round, __ATOMIC_RELEASE);
    }
    return (now_ns() - began) / (2.0 * (double)rounds);
}
