#include "scheduler.h"

#include <cstdlib>
#include <utility>

namespace interleaving {

void Scheduler::reset(uint64_t seed, uint32_t num_ranks) {
    random_ = Random(seed);
    manner_ = Manner(random_.below(4));
    num_fibres_ = num_live_ = 0;
    buffers_.clear();
    num_buffered_ = 0;
    version_ = 1, step_ = 0, polls_ = 0, clock_ = 1, idle_rounds_ = 0;
    current_ = kNobody;
    lowest_ = 1'000'000;
    // How long stores stay in flight, and how often the order of priorities changes: from hardly to all the time.
    drain_chance_ = 0.5 / double(1u << random_.below(7));
    change_chance_ = 0.05 / double(1u << random_.below(6));
    rank_priority_.assign(num_ranks, 0);
    for (uint32_t& priority : rank_priority_) priority = lowest_ + 1 + random_.below(1000);
    victim_ = restless_ = kNobody, killed_ = false;
    event_ = nullptr;
}

void Scheduler::add(uint32_t rank, std::function<void()> body) {
    if (num_fibres_ == fibres_.size()) fibres_.push_back(std::make_unique<Fibre>());
    Fibre& fibre = *fibres_[num_fibres_++];
    fibre.start(std::move(body));
    fibre.rank = rank;
    fibre.priority = lowest_ + 1 + random_.below(1000);
    fibre.polled_at = 0;
    fibre.stalled_until = 0;
    buffers_.emplace_back();
    ++num_live_;
}

Verdict Scheduler::run() {
    verdict_ = Verdict::kFinished;
    current_ = kNobody;
    if (num_live_ > 0) switch_to(choose());
    while (drain_anything()) {
    }
    return verdict_;
}

void Scheduler::point() {
    before_step();
    go_on();
}

void Scheduler::poll_failed() {
    ++polls_;
    Fibre& fibre = *fibres_[current_];
    if (fibre.rank != restless_ && fibre.state == Fibre::State::kReady) {
        fibre.state = Fibre::State::kPolling;
        fibre.polled_at = version_;
    }
    point();
    if (fibre.state == Fibre::State::kPolling) fibre.state = Fibre::State::kReady;
}

void Scheduler::block() {
    fibres_[current_]->state = Fibre::State::kBlocked;
    point();
}

void Scheduler::wake(uint32_t fibre) {
    if (fibres_[fibre]->state == Fibre::State::kBlocked) fibres_[fibre]->state = Fibre::State::kReady;
}

void Scheduler::finish() {
    fibres_[current_]->state = Fibre::State::kDone;
    if (--num_live_ == 0) stop(Verdict::kFinished);
    before_step();
    go_on();
    abort();  // a finished fibre is never chosen
}

void Scheduler::store(void* to, const void* from, uint32_t num_bytes, bool is_flag) {
    StoreBuffer& buffer = buffers_[current_];
    num_buffered_ += buffer.empty();
    buffer.push(to, from, num_bytes, is_flag);
}

void Scheduler::drain_own() {
    StoreBuffer& buffer = buffers_[current_];
    if (buffer.empty()) return;
    --num_buffered_;
    while (!buffer.empty())
        if (buffer.drain_one(random_)) flag_changed();
}

bool Scheduler::ready(const Fibre& fibre) const {
    if (fibre.stalled_until > step_) return false;
    return fibre.state == Fibre::State::kReady ||
           (fibre.state == Fibre::State::kPolling && fibre.polled_at != version_);
}

uint32_t Scheduler::choose() {
    for (;;) {
        if (const uint32_t chosen = choose_among_ready(); chosen != kNobody) return chosen;
        if (num_live_ == 0) stop(Verdict::kFinished);
        bool stalled = false;
        for (uint32_t i = 0; i < num_fibres_; ++i) {
            stalled |= fibres_[i]->stalled_until > step_;
            fibres_[i]->stalled_until = 0;
        }
        if (stalled) continue;
        if (drain_anything()) continue;
        // Everybody polls in vain: only what is still to come can help, and time.
        if (event_) std::exchange(event_, nullptr)();
        if (victim_ != kNobody && !killed_) kill();
        clock_ += kIdleNs;
        ++version_;
        if (++idle_rounds_ > kMaxIdleRounds) stop(Verdict::kHang);
    }
}

uint32_t Scheduler::choose_among_ready() {
    candidates_.clear();
    uint64_t best = 0;
    for (uint32_t i = 0; i < num_fibres_; ++i) {
        const Fibre& fibre = *fibres_[i];
        if (!ready(fibre)) continue;
        uint64_t priority = 0;
        if (manner_ == Manner::kFibrePriorities) priority = fibre.priority;
        if (manner_ == Manner::kRankPriorities) priority = rank_priority_[fibre.rank];
        if (priority < best) continue;
        if (priority > best) candidates_.clear();
        best = priority;
        candidates_.push_back(i);
    }
    return candidates_.empty() ? kNobody : candidates_[random_.below(uint32_t(candidates_.size()))];
}

void Scheduler::before_step() {
    ++clock_;
    if (++step_ > kMaxSteps) stop(Verdict::kTooLong);
    if (victim_ != kNobody && !killed_ && step_ >= kill_step_) kill();
    change_priorities();
    stall_sometimes();
    drain_sometimes();
}

void Scheduler::change_priorities() {
    if (manner_ == Manner::kUniform || manner_ == Manner::kStalls || !random_.chance(change_chance_)) return;
    --lowest_;
    fibres_[current_]->priority = lowest_;
    rank_priority_[fibres_[current_]->rank] = lowest_;
}

void Scheduler::stall_sometimes() {
    if (manner_ != Manner::kStalls || !random_.chance(change_chance_)) return;
    const uint32_t rank = random_.below(uint32_t(rank_priority_.size()));
    const bool whole_rank = random_.chance(0.5);
    const uint64_t until = step_ + (uint64_t(1) << random_.between(3, 11));
    for (uint32_t i = 0; i < num_fibres_; ++i)
        if (fibres_[i]->rank == rank && (whole_rank || random_.chance(0.3))) fibres_[i]->stalled_until = until;
}

void Scheduler::drain_sometimes() {
    if (num_buffered_ != 0 && random_.chance(drain_chance_)) drain_anything();
}

bool Scheduler::drain_anything() {
    if (num_buffered_ == 0) return false;
    uint32_t skip = random_.below(num_buffered_);
    for (StoreBuffer& buffer : buffers_) {
        if (buffer.empty() || skip-- != 0) continue;
        if (buffer.drain_one(random_)) flag_changed();
        num_buffered_ -= buffer.empty();
        return true;
    }
    return false;
}

// A killed process stops between two instructions; of its stores in flight some arrive.
void Scheduler::kill() {
    killed_ = true;
    for (uint32_t i = 0; i < num_fibres_; ++i) {
        Fibre& fibre = *fibres_[i];
        if (fibre.rank != victim_) continue;
        if (fibre.state != Fibre::State::kDone) {
            fibre.state = Fibre::State::kDead;
            --num_live_;
        }
        while (!buffers_[i].empty() && random_.chance(0.7))
            if (buffers_[i].drain_one(random_)) flag_changed();
    }
    num_buffered_ = 0;
    for (uint32_t i = 0; i < num_fibres_; ++i) {
        if (fibres_[i]->rank == victim_) buffers_[i].clear();
        num_buffered_ += !buffers_[i].empty();
    }
}

void Scheduler::go_on() {
    const uint32_t next = choose();
    if (next != current_) switch_to(next);
}

void Scheduler::switch_to(uint32_t next) {
    jmp_buf& from = current_ == kNobody ? home_ : fibres_[current_]->here;
    current_ = next;
    fibres_[next]->enter(from);
}

void Scheduler::stop(Verdict verdict) {
    verdict_ = verdict;
    _longjmp(home_, 1);
}

}  // namespace interleaving
