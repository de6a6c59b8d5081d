#include "pool.h"

#include <chrono>
#include <stdexcept>
#include <string>
#include <system_error>
#include <utility>

#include <pthread.h>
#include <sched.h>
#include <unistd.h>

#if defined(__x86_64__)
#include <immintrin.h>
#endif

#include "float_environment.h"

namespace splitrank::cpu {

namespace {

using Clock = std::chrono::steady_clock;

// The gaps between operations of a step are some 20 us. A thread that waits longer sleeps, and wakes up within some 50.
constexpr auto kSpin = std::chrono::microseconds(200);
// The caller waits for units in hand only. If their thread has lost its core, this one may be what it waits for.
constexpr auto kSpinForUnits = std::chrono::microseconds(50);
constexpr uint64_t kOneUnit = uint64_t(1) << 32;

void pause() {
#if defined(__x86_64__)
    _mm_pause();
#else
    std::this_thread::yield();
#endif
}

void pin_to(pthread_t thread, int core) {
    if (core < 0 || core >= CPU_SETSIZE) throw std::invalid_argument("there is no core " + std::to_string(core));
    cpu_set_t cores;
    CPU_ZERO(&cores);
    CPU_SET(size_t(core), &cores);
    if (const int error = pthread_setaffinity_np(thread, sizeof(cores), &cores))
        throw std::system_error(error, std::generic_category(), "a thread cannot run on core " + std::to_string(core));
}

}  // namespace

Pool::Pool(int num_threads) : process_(getpid()) {
    try {
        for (int thread = 1; thread < num_threads; ++thread) start(thread, num_threads);
    } catch (...) {
        end();  // the destructor of a thread that runs ends the process
        throw;
    }
}

Pool::~Pool() {
    // A forked child has the caller's thread alone: the others can be neither joined nor forgotten without a fault.
    if (getpid() == process_)
        end();
    else
        new std::vector<std::thread>(std::move(workers_));
}

void Pool::start(int thread, int num_threads) {
    try {
        workers_.emplace_back([this, thread] { serve(thread); });
    } catch (const std::system_error& error) {
        throw std::system_error(error.code(), "thread " + std::to_string(thread + 1) + " of " +
                                                  std::to_string(num_threads) + " of a rank cannot be started");
    }
}

void Pool::end() {
    ends_.store(true);
    num_jobs_.fetch_add(1);
    num_jobs_.notify_all();
    for (std::thread& worker : workers_) worker.join();
}

void Pool::pin(const std::vector<int>& cores) {
    if (cores.size() != size_t(num_threads()))
        throw std::invalid_argument(std::to_string(cores.size()) + " cores for " + std::to_string(num_threads()) +
                                    " threads");
    pin_to(pthread_self(), cores[0]);
    for (size_t worker = 0; worker < workers_.size(); ++worker) pin_to(workers_[worker].native_handle(), cores[worker + 1]);
}

void Pool::run(int64_t num_units, Call call, const void* self) {
    const DefaultFloatEnvironment environment;
    if (workers_.empty() || num_units <= 1) {
        for (int64_t unit = 0; unit < num_units; ++unit) call(self, unit, 0);
        return;
    }
    call_ = call, self_ = self;
    num_done_.store(0, std::memory_order_relaxed);
    claims_.store(uint64_t(num_units) * kOneUnit);
    num_jobs_.fetch_add(1);
    if (num_sleepers_.load() > 0) num_jobs_.notify_all();
    take_units(0);
    const auto begin = Clock::now();
    while (num_done_.load(std::memory_order_acquire) < num_units) {
        pause();
        if (Clock::now() - begin > kSpinForUnits) std::this_thread::yield();
    }
    if (error_) {
        has_failed_.store(false);
        std::rethrow_exception(std::exchange(error_, nullptr));
    }
}

bool Pool::has_units() const {
    const uint64_t claims = claims_.load(std::memory_order_acquire);
    return uint32_t(claims) < claims / kOneUnit;
}

bool Pool::take_units(int thread) {
    bool any = false;
    while (has_units()) {
        const uint64_t claims = claims_.fetch_add(1);
        if (uint32_t(claims) >= claims / kOneUnit) break;
        call_unit(uint32_t(claims), thread);
        num_done_.fetch_add(1, std::memory_order_release);
        any = true;
    }
    return any;
}

void Pool::call_unit(int64_t unit, int thread) {
    try {
        call_(self_, unit, thread);
    } catch (...) {
        if (!has_failed_.exchange(true)) error_ = std::current_exception();
    }
}

void Pool::serve(int thread) {
    const DefaultFloatEnvironment environment;
    auto begin = Clock::now();
    while (!ends_.load()) {
        const uint32_t seen = num_jobs_.load();
        if (take_units(thread)) begin = Clock::now();
        for (int spin = 0; spin < 64 && num_jobs_.load(std::memory_order_relaxed) == seen; ++spin) pause();
        if (num_jobs_.load() != seen || Clock::now() - begin < kSpin) continue;
        num_sleepers_.fetch_add(1);
        if (!has_units()) num_jobs_.wait(seen);
        num_sleepers_.fetch_sub(1);
        begin = Clock::now();
    }
}

}  // namespace splitrank::cpu
