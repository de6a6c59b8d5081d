// Ranks as threads over the host executor, for ThreadSanitizer: calls of all kinds, sizes and codecs, back to back.
//   threads shipped|relaxed-store|relaxed-poll WORLD_SIZE NUM_CALLS    2 or 4 ranks; 2 with a relaxed executor
// With SMALL the shipped one for 2 ranks alone: the compiler takes seconds for each.
// ThreadSanitizer does not see streaming stores, so that exchange stores are plain ones here. The two relaxed executors
// order nothing at the flag's one end or the other; a report must follow.
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <string>
#include <thread>
#include <vector>

#include "quick_reduce/codec_int4.h"
#include "quick_reduce/codec_int6.h"
#include "quick_reduce/codec_int8.h"
#include "quick_reduce/codec_none.h"
#include "quick_reduce/cpu/host_executor.h"
#include "quick_reduce/cpu/pipeline.h"

namespace {

using namespace splitrank::quick_reduce;

struct PlainStores : HostExecutor {
    template <class P>
    void store_exchange(void* to, const P& packet) const {
        std::memcpy(to, &packet, sizeof(P));
    }
};
struct RelaxedStore : PlainStores {
    void store_flag(uint64_t* flag, uint64_t value) { __atomic_store_n(flag, value, __ATOMIC_RELAXED); }
};
struct RelaxedPoll : PlainStores {
    uint64_t load_flag(const uint64_t* flag) const { return __atomic_load_n(flag, __ATOMIC_RELAXED); }
};

constexpr uint64_t kSegmentBytes = 1152;
constexpr uint32_t kNumSlots = 3;
constexpr uint64_t kLimitNs = 60'000'000'000;
constexpr uint64_t kShortLimitNs = 100'000'000;

struct Rank {
    std::vector<std::byte> region;
    std::vector<SlotState> slots = std::vector<SlotState>(kNumSlots);
    Failure failure{};
    uint64_t host_abort = 0;
    View view{};
    uint32_t calls = 0;
    uint32_t wrong = 0;
};

// One call with ones everywhere: the sum is the world size, whatever the codec.
template <class Exec, class Type, class Codec, int W>
bool call(Rank& rank, Algorithm algorithm, uint64_t num_elements, uint64_t limit_ns) {
    using Storage = typename Type::Storage;
    const std::vector<Storage> input(num_elements, Type::from_float(1.0f));
    std::vector<Storage> output(num_elements);
    Call call{};
    call.input = input.data();
    call.output = output.data();
    call.num_elements = num_elements;
    call.id = ++rank.calls;
    call.timeout_ns = limit_ns;
    const bool one_shot = algorithm == Algorithm::kOneShot;
    cut_into_tiles(call, one_shot ? 1 : W, Codec::capacity(kSegmentBytes), 1 + rank.calls % kNumSlots, kBlock);
    call.fingerprint = fingerprint(call, Type::kDType, Codec::kKind, algorithm);
    Exec exec;
    const bool ok = one_shot ? run_one_shot<Exec, Type, Codec, IsolatedLayout, W>(exec, rank.view, call)
                             : run_two_shot<Exec, Type, Codec, IsolatedLayout, W>(exec, rank.view, call);
    if (ok)
        for (const Storage element : output) rank.wrong += element != Type::from_float(float(W));
    return ok;
}

template <class Exec, int W>
bool call_number(Rank& rank, uint32_t number, uint64_t limit_ns) {
    const uint64_t size = 1 + number * 977 % 6000;  // grows and shrinks
    switch (number % 7) {
        case 0: return call<Exec, Float32, CodecNone<Float32>, W>(rank, Algorithm::kTwoShot, size, limit_ns);
        case 1: return call<Exec, Bfloat16, CodecNone<Bfloat16>, W>(rank, Algorithm::kOneShot, size, limit_ns);
        case 2: return call<Exec, Float16, CodecInt8<Float16>, W>(rank, Algorithm::kTwoShot, size, limit_ns);
        case 3: return call<Exec, Float32, CodecNone<Float32>, W>(rank, Algorithm::kOneShot, size, limit_ns);
        case 4: return call<Exec, Float32, CodecInt4<Float32>, W>(rank, Algorithm::kTwoShot, size, limit_ns);
        case 5: return call<Exec, Float32, CodecInt8<Float32>, W>(rank, Algorithm::kOneShot, size, limit_ns);
        default: return call<Exec, Bfloat16, CodecInt6<Bfloat16>, W>(rank, Algorithm::kTwoShot, size, limit_ns);
    }
}

// In the end rank 0 leaves and the others make one more call: they all must fail, and their records must not race.
template <class Exec, int W>
bool play(Rank& rank, uint32_t num_calls) {
    for (uint32_t number = 0; number < num_calls; ++number)
        if (!call_number<Exec, W>(rank, number, kLimitNs)) return false;
    if (rank.view.rank == 0) return true;
    return !call_number<Exec, W>(rank, 0, kShortLimitNs) && rank.failure.complete == 1;
}

template <class Exec, int W>
int run(uint32_t num_calls) {
    const RegionShape shape{W, kNumSlots, kSegmentBytes};
    const uint64_t num_bytes = round_up(IsolatedLayout(shape).num_bytes(), 4096);
    std::vector<Rank> ranks(W);
    std::byte* regions[W];
    for (int i = 0; i < W; ++i) {
        regions[i] = static_cast<std::byte*>(std::aligned_alloc(4096, num_bytes));
        std::memset(regions[i], 0, num_bytes);
    }
    bool good[W] = {};
    std::vector<std::thread> threads;
    for (int i = 0; i < W; ++i) {
        Rank& rank = ranks[i];
        std::copy(regions, regions + W, rank.view.regions);
        rank.view.slots = rank.slots.data();
        rank.view.failure = &rank.failure;
        rank.view.host_abort = &rank.host_abort;
        rank.view.rank = uint32_t(i);
        rank.view.shape = shape;
        threads.emplace_back([&rank, &good = good[i], num_calls] { good = play<Exec, W>(rank, num_calls); });
    }
    for (std::thread& thread : threads) thread.join();
    int num_bad = 0;
    for (int i = 0; i < W; ++i) {
        num_bad += !good[i] || ranks[i].wrong != 0;
        std::free(regions[i]);
    }
    std::printf("{\"ranks\": %d, \"calls\": %u, \"bad_ranks\": %d}\n", W, num_calls, num_bad);
    return num_bad == 0 ? 0 : 1;
}

}  // namespace

int main(int argc, char** argv) {
    if (argc != 4) return 2;
    const std::string both = std::string(argv[1]) + " " + argv[2];
    const auto num_calls = uint32_t(std::atoi(argv[3]));
    if (both == "shipped 2") return run<PlainStores, 2>(num_calls);
#ifndef SMALL
    if (both == "shipped 4") return run<PlainStores, 4>(num_calls);
    if (both == "relaxed-store 2") return run<RelaxedStore, 2>(num_calls);
    if (both == "relaxed-poll 2") return run<RelaxedPoll, 2>(num_calls);
#endif
    return 2;
}
