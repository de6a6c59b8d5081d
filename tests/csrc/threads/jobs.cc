// The pool of csrc/cpu under ThreadSanitizer: jobs of changing length, one after the other, some of whose units throw;
// threads that sleep between them; pools that end while their threads spin. Prints the number of wrong results.
#include <chrono>
#include <cstdio>
#include <stdexcept>
#include <vector>

#include "cpu/threads/pool.h"

namespace {

constexpr int kPools = 12, kJobs = 1000;
long num_wrong = 0, num_thrown = 0;

// Unit u of job j writes u * j. If it `throws`, every third unit does so after it has written.
void run_job(splitrank::cpu::Pool& pool, int job, int num_units, bool throws) {
    std::vector<int> out(size_t(num_units), -1);
    bool has_thrown = false;
    try {
        pool.run(num_units, [&](int64_t unit, int) {
            out[size_t(unit)] = int(unit) * job;
            if (throws && unit % 3 == 1) throw std::runtime_error("planned");
        });
    } catch (const std::runtime_error&) {
        has_thrown = true;
        ++num_thrown;
    }
    num_wrong += has_thrown != throws;
    for (int unit = 0; unit < num_units; ++unit) num_wrong += out[size_t(unit)] != unit * job;
}

}  // namespace

int main() {
    for (int round = 0; round < kPools; ++round) {
        splitrank::cpu::Pool pool(1 + round % 4);
        for (int job = 0; job < kJobs; ++job) {
            const int num_units = 1 + (job * 7 + round) % 40;
            run_job(pool, job, num_units, job % 17 == 0 && num_units > 1 && pool.num_threads() > 1);
            if (job % 250 == 0) std::this_thread::sleep_for(std::chrono::microseconds(400));  // longer than threads spin
        }
    }
    std::printf("{\"wrong\": %ld, \"thrown\": %ld}\n", num_wrong, num_thrown);
}
