// Runs fibres one at a time, and decides at each scheduling point who goes on. Everything follows from the seed.
//
// Four manners, because no single one finds everything: uniform choice; priorities with a few random changes (PCT) for
// fibres or for whole ranks, which makes one run far ahead of another; and uniform choice with long stalls of a rank.
#pragma once

#include <memory>
#include <vector>

#include "fibre.h"
#include "random.h"
#include "store_buffer.h"

namespace interleaving {

enum class Verdict { kFinished, kHang, kTooLong };

class Scheduler {
  public:
    void reset(uint64_t seed, uint32_t num_ranks);
    void add(uint32_t rank, std::function<void()> body);
    // Runs until every fibre is done or dead, or until nothing can change any more.
    Verdict run();

    // Called on fibres.
    void point();        // somebody else may go on
    void poll_failed();  // ... and this one only after a flag has changed
    void block();        // ... and this one only after wake()
    void wake(uint32_t fibre);
    [[noreturn]] void finish();
    void store(void* to, const void* from, uint32_t num_bytes, bool is_flag);
    const uint64_t* own_flag(const uint64_t* address) const { return buffers_[current_].find_flag(address); }
    void drain_own();  // this fibre's stores become visible
    void flag_changed() {
        ++version_;
        idle_rounds_ = 0;
    }
    uint32_t current() const { return current_; }

    void kill_rank_at(uint32_t rank, uint64_t step) { victim_ = rank, kill_step_ = step; }
    // This rank polls on while others stand still, so that its waits reach their limit though nobody is dead.
    void make_restless(uint32_t rank) { restless_ = rank; }
    void when_all_wait(std::function<void()> event) { event_ = std::move(event); }
    bool dead(uint32_t rank) const { return rank == victim_ && killed_; }
    uint64_t now_ns() const { return clock_; }
    uint64_t steps() const { return step_; }
    uint64_t polls() const { return polls_; }

    static constexpr uint64_t kIdleNs = 1'000'000;  // how far the clock jumps when everybody waits

  private:
    enum class Manner : uint32_t { kUniform, kFibrePriorities, kRankPriorities, kStalls };
    static constexpr uint64_t kMaxSteps = 20'000'000;
    static constexpr uint64_t kMaxIdleRounds = 10'000;  // more polls than a wait needs to see the clock or an abort word
    static constexpr uint32_t kNobody = ~0u;

    bool ready(const Fibre& fibre) const;
    uint32_t choose();
    uint32_t choose_among_ready();
    void before_step();
    void change_priorities();
    void stall_sometimes();
    void drain_sometimes();
    bool drain_anything();
    void kill();
    void switch_to(uint32_t next);
    [[noreturn]] void stop(Verdict verdict);
    void go_on();

    std::vector<std::unique_ptr<Fibre>> fibres_;
    std::vector<StoreBuffer> buffers_;
    std::vector<uint32_t> rank_priority_;
    std::vector<uint32_t> candidates_;
    Random random_{0};
    Manner manner_ = Manner::kUniform;
    jmp_buf home_;
    Verdict verdict_ = Verdict::kFinished;
    uint32_t num_fibres_ = 0, num_live_ = 0, num_buffered_ = 0, current_ = kNobody, lowest_ = 0;
    uint64_t version_ = 0, step_ = 0, polls_ = 0, clock_ = 0, idle_rounds_ = 0;
    double drain_chance_ = 0, change_chance_ = 0;
    uint32_t victim_ = kNobody, restless_ = kNobody;
    uint64_t kill_step_ = 0;
    bool killed_ = false;
    std::function<void()> event_;
};

}  // namespace interleaving
