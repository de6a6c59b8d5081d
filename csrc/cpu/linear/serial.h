// The specification: each output is one chain of multiply-adds over its inputs, in order. The chains of a row-parallel
// product's virtual shards are added along a tree, ((0 + 1) + (2 + 3)), of which a tensor rank holds a subtree.
#pragma once

#include <cmath>
#include <cstdint>

namespace splitrank::cpu::serial {

inline float chain(const float* x, const float* weights, int64_t begin, int64_t end) {
    float sum = 0.0f;
    for (int64_t input = begin; input < end; ++input) sum = std::fma(x[input], weights[input], sum);
    return sum;
}

inline float tree(const float* sums, int64_t count) {
    return count == 1 ? sums[0] : tree(sums, count / 2) + tree(sums + count / 2, count / 2);
}

// x [T, K], weight [N, K], bounds [shards + 1] -> out [T, N]
inline void linear(const float* x, const float* weight, int64_t num_rows, int64_t num_outputs, int64_t num_inputs,
                   const int64_t* bounds, int64_t num_shards, float* out) {
    for (int64_t row = 0; row < num_rows; ++row)
        for (int64_t output = 0; output < num_outputs; ++output) {
            float sums[8];
            for (int64_t shard = 0; shard < num_shards; ++shard)
                sums[shard] = chain(x + row * num_inputs, weight + output * num_inputs, bounds[shard],
                                    bounds[shard + 1]);
            out[row * num_outputs + output] = tree(sums, num_shards);
        }
}

}  // namespace splitrank::cpu::serial
