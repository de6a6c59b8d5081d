// Runs random schedules of the mailbox and prints one JSON line. Exit status 1: something was violated; 2: wrong arguments.
//   main [--faults] [--seed S] [--schedules N] [--mutation N]
#include <cstdio>
#include <cstdlib>
#include <cstring>

#include "../interleaving/choice.h"
#include "ring.h"

using namespace mailbox;

int main(int argc, char** argv) {
    uint64_t seed = 1, schedules = 1000, violations = 0, good = 0, failed = 0;
    uint64_t by_fault[uint32_t(Fault::kCount)] = {}, by_failure[6] = {};
    bool faults = false;
    for (int i = 1; i < argc; ++i) {
        const bool has_value = i + 1 < argc;
        if (!std::strcmp(argv[i], "--faults")) {
            faults = true;
        } else if (!std::strcmp(argv[i], "--seed") && has_value) {
            seed = std::strtoull(argv[++i], nullptr, 10);
        } else if (!std::strcmp(argv[i], "--schedules") && has_value) {
            schedules = std::strtoull(argv[++i], nullptr, 10);
        } else if (!std::strcmp(argv[i], "--mutation") && has_value) {
            mutation = std::atoi(argv[++i]);
        } else {
            std::fprintf(stderr, "mailbox: cannot use '%s'\n", argv[i]);
            return 2;
        }
    }
    Scheduler scheduler;
    std::string first;
    uint64_t done = 0;
    for (; done < schedules && violations == 0; ++done) {
        Random random(seed + done);
        const auto fault = faults ? Fault(1 + random.below(uint32_t(Fault::kCount) - 1)) : Fault::kNone;
        const Plan plan = make_plan(fault, random);
        const Outcome outcome = Ring(scheduler, plan).run(random);
        good += outcome.good;
        failed += outcome.failed;
        ++by_fault[uint32_t(fault)];
        for (uint32_t kind = 0; kind < 6; ++kind) by_failure[kind] += outcome.failure_kinds >> kind & 1;
        if (outcome.violation.empty()) continue;
        ++violations;
        first = outcome.violation + " (" + std::to_string(plan.num_stages) + " stages, " +
                std::to_string(plan.num_places) + " places, " + std::to_string(plan.num_blocks) + " blocks, " +
                std::to_string(plan.num_lanes) + " lanes, fault: " + name(fault) + ")";
        std::fprintf(stderr, "mailbox: %s; replay with --seed %llu --schedules 1\n", first.c_str(),
                     static_cast<unsigned long long>(seed + done));
    }
    std::printf("{\"schedules\": %llu, \"violations\": %llu, \"good\": %llu, \"failed\": %llu, \"first\": \"%s\"",
                static_cast<unsigned long long>(done), static_cast<unsigned long long>(violations),
                static_cast<unsigned long long>(good), static_cast<unsigned long long>(failed), first.c_str());
    const auto print = [](const char* key, const uint64_t* counts, uint32_t size) {
        std::printf(", \"%s\": [", key);
        for (uint32_t i = 0; i < size; ++i)
            std::printf("%s%llu", i ? ", " : "", static_cast<unsigned long long>(counts[i]));
        std::printf("]");
    };
    print("by_fault", by_fault, uint32_t(Fault::kCount));
    print("by_failure", by_failure, 6);
    std::printf("}\n");
    return violations == 0 ? 0 : 1;
}
