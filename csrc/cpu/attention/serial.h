// The specification of causal attention over pages, in double: query r sees the keys up to its own position.
#pragma once

#include <cmath>
#include <vector>

#include "../kernels.h"

namespace splitrank::cpu::serial {

// keys, values [tokens, head_dim] in order
inline void attend(const double* query, int64_t position, const double* keys, const double* values, int64_t head_dim,
                   double scale, double* out) {
    std::vector<double> weights(size_t(position + 1));
    double most = -INFINITY, total = 0;
    for (int64_t key = 0; key <= position; ++key) {
        double dot = 0;
        for (int64_t i = 0; i < head_dim; ++i) dot += query[i] * keys[key * head_dim + i];
        weights[size_t(key)] = dot * scale;
        most = std::fmax(most, dot * scale);
    }
    for (double& weight : weights) total += weight = std::exp(weight - most);
    for (int64_t i = 0; i < head_dim; ++i) {
        out[i] = 0;
        for (int64_t key = 0; key <= position; ++key) out[i] += weights[size_t(key)] / total * values[key * head_dim + i];
    }
}

}  // namespace splitrank::cpu::serial
