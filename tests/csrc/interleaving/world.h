// Ranks with their exchange memory, the fibres that run their calls, and the verdict on what came out.
#pragma once

#include <array>
#include <memory>

#include "fibre_executor.h"
#include "plan.h"

namespace interleaving {

struct Outcome {
    std::string violation;  // empty: none
    uint64_t steps = 0;
    uint32_t good_calls = 0;
    uint32_t failed_calls = 0;
    uint32_t failure_kinds = 0;  // bit k: some rank has recorded kind k
};

class World {
  public:
    World(Scheduler& scheduler, const Choice& choice, const Plan& plan);
    Outcome run(Random& random);

  private:
    struct RankCall {
        const Kernel* kernel;
        Call call;
        std::vector<std::byte> original, input, output;
        uint32_t slots_good = 0, slots_failed = 0;
        bool made = false;
    };
    struct Rank {
        std::vector<std::byte> region;
        std::vector<quick_reduce::SlotState> slots;
        quick_reduce::Failure failure{};
        uint64_t host_abort = 0;
        View view;
        std::vector<RankCall> calls;
    };
    // Calls of one rank that run one after the other, and the fibres that run them.
    struct Stream {
        uint32_t rank;
        std::vector<uint32_t> calls;
        std::vector<Block> blocks;
        uint32_t first_fibre = 0, num_fibres = 0, arrived = 0;
        size_t current = 0;
    };

    void make_rank(uint32_t rank);
    void age_words(std::vector<std::byte>& region, const quick_reduce::RegionShape& shape) const;
    RankCall make_call(uint32_t rank, const PlannedCall& planned, size_t ordinal) const;
    bool colour_from_host() const;
    void add_stream(uint32_t rank, uint32_t stream);
    void add_fibres(Stream& stream, bool host_like);
    void run_lane(Stream& stream, uint32_t slot, uint32_t lane, bool host_like);
    void run_one(Stream& stream, RankCall& call, FibreExecutor& exec, uint32_t slot, bool host_like);
    std::array<const void*, quick_reduce::kMaxWorldSize> inputs_of(size_t ordinal) const;
    void launch(Stream& stream);
    void arm_fault(Random& random);
    void give_up();

    std::string check(Verdict verdict);
    std::string check_result(uint32_t rank, size_t ordinal);
    std::string check_ages() const;
    std::string check_late_calls();
    std::string check_record(uint32_t rank) const;
    bool good(uint32_t rank, size_t ordinal) const;
    bool alive(uint32_t rank) const { return rank != dead_rank_; }
    static bool same(const RankCall& a, const RankCall& b);
    bool agreed(size_t ordinal) const;

    Scheduler& scheduler_;
    const Choice choice_;
    const Plan plan_;
    const Kernels kernels_;
    std::vector<Rank> ranks_;
    std::vector<std::unique_ptr<Stream>> streams_;
    std::vector<uint64_t> colours_;  // historical: of each call, counted by the host
    uint32_t num_fibres_ = 0;
    uint32_t dead_rank_ = ~0u;
    Outcome outcome_;
};

}  // namespace interleaving
