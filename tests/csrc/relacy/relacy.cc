// The memory orders of the handshake under Relacy: flags are its atomics, exchange data its variables, so that it knows
// which writes a thread may see and which reads race, in the C++ memory model and not in this machine's.
//   relacy EXECUTOR LAYOUT WORLD_SIZE NUM_CALLS ITERATIONS
// EXECUTOR  shipped, relaxed-store, relaxed-poll      LAYOUT  shipped, one-place, one-storage
// The search is random. Relacy's exhaustive ones do not end here: a poll may see the old value any number of times.
#include <relacy/relacy.hpp>

#include <cstdio>
#include <cstring>
#include <map>
#include <memory>
#include <string>
#include <vector>

#include "quick_reduce/codec_none.h"
#include "quick_reduce/cpu/pipeline.h"

namespace {

using namespace splitrank::quick_reduce;

constexpr int kK = 32;  // elements of a packet
constexpr uint64_t kSegmentBytes = kK * 4;
constexpr uint32_t kNumSlots = 1;

// One address of all ranks' exchange memory: what Relacy watches there.
struct Places {
    std::map<const void*, std::unique_ptr<rl::atomic<uint64_t>>> flags;
    std::map<const void*, std::unique_ptr<rl::var<uint32_t>>> packets;  // all elements of a packet are equal here

    rl::atomic<uint64_t>& flag(const void* address) { return *flags.at(address); }
    rl::var<uint32_t>& packet(const void* address) { return *packets.at(address); }
};

template <rl::memory_order Store, rl::memory_order Load>
class RelacyExecutor {
  public:
    static constexpr int kLaneElements = kK;
    static constexpr int kWave = 1;
    static constexpr int kUnroll = 1;

    explicit RelacyExecutor(Places& places) : places_(places) {}

    uint32_t lane() const { return 0; }
    uint32_t num_lanes() const { return 1; }
    void release_block() {}
    bool all(bool ok) { return ok; }
    void store_flag(uint64_t* flag, uint64_t value) { places_.flag(flag).store(value, Store, $); }
    uint64_t load_flag(const uint64_t* flag) { return places_.flag(flag).load(Load, $); }
    uint32_t exchange(uint32_t* word, uint32_t value) { return std::swap(*word, value), value; }
    bool claim(uint32_t* word, uint32_t value) { return *word == 0 ? (*word = value, true) : false; }
    void store_complete(uint32_t* word) { *word = 1; }
    uint64_t now_ns() const { return 1; }
    void pause(uint32_t) { rl::yield(1, $); }
    uint32_t group_max(uint32_t value) const { return value; }

    template <class P>
    P load_input(const void* from) const {
        P packet;
        std::memcpy(&packet, from, sizeof(P));
        return packet;
    }
    template <class P>
    void store_output(void* to, const P& packet) const {
        std::memcpy(to, &packet, sizeof(P));
    }
    template <class P>
    P load_exchange(const void* from) const {
        P packet;
        const uint32_t element = places_.packet(from)($);
        for (uint32_t& word : packet.word) word = element;
        return packet;
    }
    template <class P>
    void store_exchange(void* to, const P& packet) const {
        places_.packet(to)($) = packet.word[0];
    }

  private:
    Places& places_;
};

// Broken on purpose: the first phase has one place only, or both phases share theirs.
struct OnePlace : IsolatedLayout {
    using IsolatedLayout::IsolatedLayout;
    static Phase merge(Phase phase) { return phase == kSecond ? kSecond : kFirstEven; }
    uint64_t flag(uint32_t slot, Phase phase, uint32_t peer) const {
        return IsolatedLayout::flag(slot, merge(phase), peer);
    }
    uint64_t data(uint32_t slot, Phase phase, uint32_t peer) const {
        return IsolatedLayout::data(slot, merge(phase), peer);
    }
};
struct OneStorage : IsolatedLayout {
    using IsolatedLayout::IsolatedLayout;
    uint64_t data(uint32_t slot, Phase, uint32_t peer) const {
        return IsolatedLayout::data(slot, kFirstEven, peer);
    }
};

int num_calls = 2;

template <class Exec, class Layout, int W>
struct Ranks : rl::test_suite<Ranks<Exec, Layout, W>, W> {
    struct Rank {
        std::vector<std::byte> region;  // addresses; the contents are in `places`
        SlotState slots[kNumSlots] = {};
        Failure failure{};
        uint64_t host_abort = 0;
        View view{};
    };
    Rank ranks[W];
    Places places;

    Ranks() {
        const RegionShape shape{W, kNumSlots, kSegmentBytes};
        const Layout layout(shape);
        for (Rank& rank : ranks) rank.region.resize(layout.num_bytes());
        for (uint32_t index = 0; index < W; ++index) {
            Rank& rank = ranks[index];
            for (int peer = 0; peer < W; ++peer) rank.view.regions[peer] = ranks[peer].region.data();
            rank.view.slots = rank.slots;
            rank.view.failure = &rank.failure;
            rank.view.host_abort = &rank.host_abort;
            rank.view.rank = index;
            rank.view.shape = shape;
            watch(rank, layout);
        }
    }

    void watch(Rank& rank, const Layout& layout) {
        places.flags[rank.region.data()] = std::make_unique<rl::atomic<uint64_t>>(0);
        places.flags[&rank.host_abort] = std::make_unique<rl::atomic<uint64_t>>(0);
        for (uint32_t phase = 0; phase < kNumPhases; ++phase)
            for (uint32_t peer = 0; peer < W - 1; ++peer) {
                const std::byte* flag = rank.region.data() + layout.flag(0, Phase(phase), peer);
                const std::byte* data = rank.region.data() + layout.data(0, Phase(phase), peer);
                if (!places.flags.count(flag)) places.flags[flag] = std::make_unique<rl::atomic<uint64_t>>(0);
                if (!places.packets.count(data)) places.packets[data] = std::make_unique<rl::var<uint32_t>>(0);
            }
    }

    void thread(unsigned index) {
        for (int number = 0; number < num_calls; ++number) call(ranks[index], uint32_t(number));
    }

    // Kinds alternate so that each follows each: one-shot, one-shot, two-shot, two-shot, ...
    void call(Rank& rank, uint32_t number) {
        const bool one_shot = number % 4 < 2;
        const uint32_t elements = one_shot ? kK : kK * W;
        uint32_t input[kK * W], output[kK * W];
        for (uint32_t& element : input) element = Float32::from_float(float(1u << (4 * number + rank.view.rank)));
        Call call{};
        call.input = input;
        call.output = output;
        call.num_elements = elements;
        call.id = number + 1;
        call.timeout_ns = 1'000'000'000;
        cut_into_tiles(call, one_shot ? 1 : W, kK, kNumSlots, kBlock);
        call.fingerprint =
            fingerprint(call, DType::kFloat32, CodecKind::kNone, one_shot ? Algorithm::kOneShot : Algorithm::kTwoShot);
        Exec exec(places);
        const bool ok = one_shot ? run_one_shot<Exec, Float32, CodecNone<Float32>, Layout, W>(exec, rank.view, call)
                                 : run_two_shot<Exec, Float32, CodecNone<Float32>, Layout, W>(exec, rank.view, call);
        RL_ASSERT(ok);
        const float sum = float(((1u << W) - 1) << (4 * number));
        for (uint32_t i = 0; i < elements; ++i) RL_ASSERT(Float32::to_float(output[i]) == sum);
    }
};

template <class Exec, class Layout, int W>
int simulate(uint64_t iterations) {
    rl::test_params params;
    params.iteration_count = iterations;
    params.execution_depth_limit = 20'000;
    const bool good = rl::simulate<Ranks<Exec, Layout, W>>(params);
    std::printf("\n{\"good\": %s, \"result\": \"%s\", \"iterations\": %llu}\n", good ? "true" : "false",
                rl::test_result_str(params.test_result), static_cast<unsigned long long>(params.stop_iteration));
    return good ? 0 : 1;
}

template <class Exec, class Layout>
int simulate(int world_size, uint64_t iterations) {
    return world_size == 2 ? simulate<Exec, Layout, 2>(iterations) : simulate<Exec, Layout, 3>(iterations);
}

// Executor or layout may be broken, not both: each pair takes the compiler a second.
int simulate(const std::string& executor, const std::string& layout, int world_size, uint64_t iterations) {
    using Shipped = RelacyExecutor<rl::mo_release, rl::mo_acquire>;
    using RelaxedStore = RelacyExecutor<rl::mo_relaxed, rl::mo_acquire>;
    using RelaxedPoll = RelacyExecutor<rl::mo_release, rl::mo_relaxed>;
    const std::string both = executor + " " + layout;
    if (both == "shipped shipped") return simulate<Shipped, IsolatedLayout>(world_size, iterations);
    if (both == "shipped one-place") return simulate<Shipped, OnePlace>(world_size, iterations);
    if (both == "shipped one-storage") return simulate<Shipped, OneStorage>(world_size, iterations);
    if (both == "relaxed-store shipped") return simulate<RelaxedStore, IsolatedLayout>(world_size, iterations);
    if (both == "relaxed-poll shipped") return simulate<RelaxedPoll, IsolatedLayout>(world_size, iterations);
    return 2;
}

}  // namespace

int main(int argc, char** argv) {
    if (argc != 6) return 2;
    const std::string executor = argv[1], layout = argv[2];
    const int world_size = std::stoi(argv[3]);
    num_calls = std::stoi(argv[4]);
    const uint64_t iterations = std::stoull(argv[5]);
    return simulate(executor, layout, world_size, iterations);
}
