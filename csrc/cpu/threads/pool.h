// The threads of a rank. Work is cut into units, and whoever is free takes the next: so a thread whose core was taken
// away costs its share and no more. Which thread computes a unit changes no bit.
#pragma once

#include <atomic>
#include <cstdint>
#include <exception>
#include <thread>
#include <vector>

#include <sys/types.h>

namespace splitrank::cpu {

class Pool {
public:
    explicit Pool(int num_threads);  // the caller of `run` is one of them; std::system_error if one cannot be started
    ~Pool();
    Pool(const Pool&) = delete;
    Pool& operator=(const Pool&) = delete;

    int num_threads() const { return int(workers_.size()) + 1; }

    // The calling thread runs on the first of `cores` from now on, and each of the others on its own: one a thread. While
    // one waits without work the system may else put two on one core, and leaves them there for milliseconds.
    // std::invalid_argument, std::system_error.
    void pin(const std::vector<int>& cores);

    // Calls work(unit, thread) for each unit, and returns when all are done; throws the first of their exceptions then.
    // One call at a time.
    template <class Work>
    void run(int64_t num_units, const Work& work) {
        run(num_units, [](const void* self, int64_t unit, int thread) {
            (*static_cast<const Work*>(self))(unit, thread);
        }, &work);
    }

private:
    using Call = void (*)(const void* self, int64_t unit, int thread);

    void run(int64_t num_units, Call call, const void* self);
    bool take_units(int thread);
    void call_unit(int64_t unit, int thread);
    void serve(int thread);
    void start(int thread, int num_threads);
    void end();
    bool has_units() const;

    // Number of units, above the number of the next one: a claim is one addition, and a claim of a number that is there
    // keeps the job alive, so its fields may be read.
    std::atomic<uint64_t> claims_{0};
    std::atomic<int64_t> num_done_{0};
    Call call_ = nullptr;
    const void* self_ = nullptr;
    std::atomic<bool> has_failed_{false};
    std::exception_ptr error_;  // of the first unit that failed

    std::atomic<uint32_t> num_jobs_{0};  // sleepers wait for a change
    std::atomic<int> num_sleepers_{0};
    std::atomic<bool> ends_{false};
    std::vector<std::thread> workers_;
    const pid_t process_;  // that the workers belong to
};

}  // namespace splitrank::cpu
