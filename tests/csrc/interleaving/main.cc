// Runs random schedules and prints one JSON line. Exit status 1: something was violated; 2: wrong arguments.
#include <chrono>
#include <cstdio>
#include <cstdlib>
#include <cstring>

#include "choice.h"
#include "plans.h"
#include "world.h"

namespace interleaving {
namespace {

struct Options {
    Choice choice;
    uint64_t seed = 1;
    uint64_t num_schedules = 1000;
    bool plans_only = false;
    // Goes on until so many schedules have done one of these. None asked for: stops at the first of any.
    uint64_t hangs = 0, wrong_sums = 0, false_failures = 0;
};

struct Totals {
    uint64_t schedules = 0, steps = 0, good_calls = 0, failed_calls = 0, violations = 0;
    uint64_t by_fault[uint32_t(Fault::kCount)] = {}, by_failure[6] = {}, by_world_size[9] = {};
    uint64_t hangs = 0, wrong_sums = 0, false_failures = 0;
    std::string first;
    uint64_t first_seed = 0;
};

[[noreturn]] void usage(const char* argument) {
    std::fprintf(stderr,
                 "interleaving: cannot use '%s'\n"
                 "  [--protocol shipped|historical-equal|historical-at-least|historical-addresses]\n"
                 "  [--faults | --fault NAME] [--equal-sizes] [--world-size 2|3|4|8]\n"
                 "  [--seed S] [--schedules N]    schedule i has seed S + i\n"
                 "  [--hangs N | --wrong-sums N | --false-failures N]    goes on until it has seen so many\n"
                 "  [--mutation N]    of those that this program was built with\n"
                 "  --plans    only layout and cut\n",
                 argument);
    std::exit(2);
}

Protocol protocol_named(const char* name) {
    if (!std::strcmp(name, "shipped")) return Protocol::kShipped;
    if (!std::strcmp(name, "historical-equal")) return Protocol::kHistoricalEqual;
    if (!std::strcmp(name, "historical-at-least")) return Protocol::kHistoricalAtLeast;
    if (!std::strcmp(name, "historical-addresses")) return Protocol::kHistoricalAddresses;
    usage(name);
}

Fault known_fault(const char* name) {
    const Fault fault = fault_named(name);
    if (fault == Fault::kCount) usage(name);
    return fault;
}

Options parse(int argc, char** argv) {
    Options options;
    for (int i = 1; i < argc; ++i) {
        const std::string flag = argv[i];
        if (flag == "--faults") {
            options.choice.faults = true;
        } else if (flag == "--equal-sizes") {
            options.choice.equal_sizes = true;
        } else if (flag == "--plans") {
            options.plans_only = true;
        } else {
            if (i + 1 == argc) usage(argv[i]);
            const char* value = argv[++i];
            if (flag == "--protocol")
                options.choice.protocol = protocol_named(value);
            else if (flag == "--world-size")
                options.choice.world_size = uint32_t(std::strtoul(value, nullptr, 10));
            else if (flag == "--fault")
                options.choice.fault = known_fault(value);
            else if (flag == "--hangs")
                options.hangs = std::strtoull(value, nullptr, 10);
            else if (flag == "--wrong-sums")
                options.wrong_sums = std::strtoull(value, nullptr, 10);
            else if (flag == "--false-failures")
                options.false_failures = std::strtoull(value, nullptr, 10);
            else if (flag == "--mutation")
                mutation = int(std::strtol(value, nullptr, 10));
            else if (flag == "--seed")
                options.seed = std::strtoull(value, nullptr, 10);
            else if (flag == "--schedules")
                options.num_schedules = std::strtoull(value, nullptr, 10);
            else
                usage(flag.c_str());
        }
    }
    return options;
}

void note(Totals& totals, const Plan& plan, const Outcome& outcome, uint64_t seed) {
    ++totals.schedules;
    totals.steps += outcome.steps;
    totals.good_calls += outcome.good_calls;
    totals.failed_calls += outcome.failed_calls;
    ++totals.by_fault[uint32_t(plan.fault)];
    ++totals.by_world_size[plan.world_size];
    for (uint32_t kind = 0; kind < 6; ++kind) totals.by_failure[kind] += outcome.failure_kinds >> kind & 1;
    if (outcome.violation.empty()) return;
    if (totals.violations++ == 0) {
        totals.first = outcome.violation + " (world size " + std::to_string(plan.world_size) + ", " +
                       std::to_string(plan.num_slots) + " slots, fault: " + name(plan.fault) + ")";
        totals.first_seed = seed;
    }
    totals.hangs += outcome.violation.find("hang") != std::string::npos;
    totals.wrong_sums += outcome.violation.find("wrong sum") != std::string::npos;
    totals.false_failures += outcome.violation.find("though nothing was wrong") != std::string::npos;
}

bool seen_enough(const Options& options, const Totals& totals) {
    if (options.hangs + options.wrong_sums + options.false_failures == 0) return totals.violations != 0;
    return totals.hangs >= options.hangs && totals.wrong_sums >= options.wrong_sums &&
           totals.false_failures >= options.false_failures;
}

void print_counts(const char* key, const uint64_t* counts, size_t size) {
    std::printf(", \"%s\": [", key);
    for (size_t i = 0; i < size; ++i) std::printf("%s%llu", i ? ", " : "", static_cast<unsigned long long>(counts[i]));
    std::printf("]");
}

void print(const Totals& totals, double seconds) {
    const auto field = [](const char* key, uint64_t value) {
        std::printf("\"%s\": %llu, ", key, static_cast<unsigned long long>(value));
    };
    std::printf("{");
    field("schedules", totals.schedules);
    field("violations", totals.violations);
    field("hangs", totals.hangs);
    field("wrong_sums", totals.wrong_sums);
    field("false_failures", totals.false_failures);
    field("steps", totals.steps);
    field("good_calls", totals.good_calls);
    field("failed_calls", totals.failed_calls);
    field("first_seed", totals.first_seed);
    std::printf("\"first\": \"%s\", \"seconds\": %.2f", totals.first.c_str(), seconds);
    print_counts("by_fault", totals.by_fault, uint32_t(Fault::kCount));
    print_counts("by_failure", totals.by_failure, 6);
    print_counts("by_world_size", totals.by_world_size, 9);
    std::printf("}\n");
}

int run_plans() {
    const std::string wrong = check_plans();
    std::printf("{\"violations\": %d, \"first\": \"%s\"}\n", !wrong.empty(), wrong.c_str());
    return wrong.empty() ? 0 : 1;
}

int run(const Options& options) {
    if (options.plans_only) return run_plans();
    const auto began = std::chrono::steady_clock::now();
    Scheduler scheduler;
    Totals totals;
    for (uint64_t seed = options.seed; seed < options.seed + options.num_schedules; ++seed) {
        Random random(seed);
        const Plan plan = make_plan(options.choice, random);
        note(totals, plan, World(scheduler, options.choice, plan).run(random), seed);
        if (seen_enough(options, totals)) break;
    }
    print(totals, std::chrono::duration<double>(std::chrono::steady_clock::now() - began).count());
    if (totals.violations != 0)
        std::fprintf(stderr, "interleaving: %s; replay with --seed %llu --schedules 1\n", totals.first.c_str(),
                     static_cast<unsigned long long>(totals.first_seed));
    return totals.violations == 0 ? 0 : 1;
}

}  // namespace
}  // namespace interleaving

int main(int argc, char** argv) { return interleaving::run(interleaving::parse(argc, argv)); }
