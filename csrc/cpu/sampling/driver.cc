#include <algorithm>

#include "../operations.h"

namespace splitrank::cpu {

namespace {

constexpr int64_t kLanes = 16;

// The first of the largest; if there is a NaN, that is the largest.
int64_t first_largest(const float* logits, int64_t count) {
    float largest[kLanes];
    std::fill(largest, largest + kLanes, logits[0]);
    bool has_nan = false;
    const int64_t whole = count / kLanes * kLanes;
    for (int64_t i = 0; i < whole; i += kLanes)
        for (int64_t lane = 0; lane < kLanes; ++lane) {
            const float value = logits[i + lane];
            largest[lane] = value > largest[lane] ? value : largest[lane];
            has_nan |= value != value;
        }
    for (int64_t i = whole; i < count; ++i) {
        largest[0] = std::max(largest[0], logits[i]);
        has_nan |= logits[i] != logits[i];
    }
    if (has_nan) return std::find_if(logits, logits + count, [](float value) { return value != value; }) - logits;
    return std::find(logits, logits + count, *std::max_element(largest, largest + kLanes)) - logits;
}

}  // namespace

void Operations::greedy(const float* logits, int64_t num_rows, int64_t num_logits, int64_t* tokens, float* largest) {
    pool_.run(num_rows, [&](int64_t row, int) {
        const float* of_row = logits + row * num_logits;
        tokens[row] = first_largest(of_row, num_logits);
        largest[row] = of_row[tokens[row]];
    });
}

}  // namespace splitrank::cpu
