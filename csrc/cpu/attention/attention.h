// Causal attention of some queries of one kv head: an online softmax over blocks of 64 keys at absolute multiples, so
// that a query's bits depend on its context alone.
//
// Keys of a block are transposed and both keys and values widened to float32 once for all queries; then scores and
// weighted values are tiles of the linear layers.
#pragma once

#include "../linear/tile.h"
#include "../simd/values.h"

namespace splitrank::cpu_kernels {

using cpu::Attend;
using cpu::kKeyBlock;

// Elements of the token at `position` in the pages.
inline int64_t token_place(const Attend& call, int64_t position) {
    return (call.pages[position / call.page_size] * call.page_size + position % call.page_size) * call.token_stride;
}

inline void gather(const Attend& call, int64_t begin, int64_t count, int64_t padded, float* keys, float* values) {
    const Values from_keys{const_cast<void*>(call.keys), call.dtype, 0};
    const Values from_values{const_cast<void*>(call.values), call.dtype, 0};
    for (int64_t token = 0; token < kKeyBlock; ++token) {
        if (token >= count) {  // never read where no query sees them, but tiles compute whole panels
            for (int64_t i = 0; i < call.head_dim; ++i) keys[i * kKeyBlock + token] = 0.0f;
            continue;
        }
        const int64_t at = token_place(call, begin + token);
        for (int64_t i = 0; i < call.head_dim; i += kLanes) {
            const int64_t rest = call.head_dim - i;
            float lanes[kLanes];
            store(lanes, load_values(from_keys, at + i, rest));
            for (int64_t lane = 0; lane < kLanes && lane < rest; ++lane)
                keys[(i + lane) * kKeyBlock + token] = lanes[lane];
            store(values + token * padded + i, load_values(from_values, at + i, rest));
        }
    }
}

// Scores [64] of a query, `visible` of which count -> weights in place; `most` and `total` advance. Returns the factor of
// what was summed before.
inline float soften(float* scores, int64_t visible, float scale, float& most, float& total) {
    float new_most = most;
    for (int64_t i = 0; i < visible; ++i) {
        scores[i] *= scale;
        new_most = scores[i] > new_most || scores[i] != scores[i] ? scores[i] : new_most;
    }
    const float factor = exp(broadcast(most - new_most))[0];
    Sixteen sums;
    for (int64_t begin = 0; begin < kKeyBlock; begin += kSums)
        for (int part = 0; part < kParts; ++part) {
            float* at = scores + begin + part * kLanes;
            Vec weights = exp(load(at) - broadcast(new_most));
            for (int lane = 0; lane < kLanes; ++lane)
                if (begin + part * kLanes + lane >= visible) weights[lane] = 0.0f;
            store(at, weights);
            sums.parts[part] += weights;
        }
    total = total * factor + sums.total();
    most = new_most;
    return factor;
}

// sums[r] += weights[r] x values, of the first visible[r] keys: [R][padded]. `visible` ascends.
inline void add_values(int num_rows, const float* const* weights, const int64_t* visible, const float* values,
                       int64_t padded, float* sums) {
    const int64_t shared = visible[0];
    for (int64_t at = 0; at < padded; at += kPanel) {
        any_tile<Float32Weights, true>(num_rows, 1, weights, shared, values + at, padded, 0, sums + at, padded);
        // Not with weight 0 in all rows: an infinite value of a later token would be a NaN in an earlier one.
        for (int row = 1; row < num_rows && visible[num_rows - 1] > shared; ++row) {
            const float* rest = weights[row] + shared;
            tile<Float32Weights, 1, 1, true>(&rest, visible[row] - shared, values + shared * padded + at, padded, 0,
                                             sums + row * padded + at, padded);
        }
    }
}

inline void attend(const Attend& call) {
    const int64_t padded = cpu::ceil_div(call.head_dim, kPanel) * kPanel;
    float* keys = call.scratch;  // [head_dim][64]
    float* values = keys + kKeyBlock * padded;  // [64][padded]
    float* scores = values + kKeyBlock * padded;  // [R][64]
    float* sums = scores + call.num_rows * kKeyBlock;  // [R][padded]
    float* most = sums + call.num_rows * padded;
    float* total = most + call.num_rows;
    for (int64_t i = 0; i < call.num_rows * padded; ++i) sums[i] = 0.0f;
    for (int64_t i = 0; i < kKeyBlock * padded; ++i) values[i] = 0.0f;
    for (int64_t row = 0; row < call.num_rows; ++row) most[row] = -3.0e38f, total[row] = 0.0f;
    const int64_t last = call.positions[call.num_rows - 1];
    for (int64_t begin = 0; begin <= last; begin += kKeyBlock) {
        const int64_t count = last - begin + 1 < kKeyBlock ? last - begin + 1 : kKeyBlock;
        gather(call, begin, count, padded, keys, values);
        int64_t first = 0;  // rows before it see nothing of the block
        while (call.positions[first] < begin) ++first;
        for (int64_t row = first; row < call.num_rows;) {
            const int rows = rows_of_tile(call.num_rows - row);
            const float *x[kMostRows], *weights[kMostRows];
            for (int i = 0; i < rows; ++i) x[i] = call.queries + (row + i) * call.head_dim;
            for (int64_t key = 0; key < count; key += kPanel)
                any_tile<Float32Weights>(rows, 1, x, call.head_dim, keys + key, kKeyBlock, 0,
                                         scores + row * kKeyBlock + key, kKeyBlock);
            int64_t visible[kMostRows];
            for (int i = 0; i < rows; ++i) {
                const int64_t position = call.positions[row + i];
                visible[i] = position - begin + 1 < kKeyBlock ? position - begin + 1 : kKeyBlock;
                float* of_row = scores + (row + i) * kKeyBlock;
                const Vec factor = broadcast(soften(of_row, visible[i], call.scale, most[row + i], total[row + i]));
                for (int64_t at = 0; at < padded; at += kLanes) {
                    float* to = sums + (row + i) * padded + at;
                    store(to, load(to) * factor);
                }
                weights[i] = of_row;
            }
            add_values(rows, weights, visible, values, padded, sums + row * padded);
            row += rows;
        }
    }
    for (int64_t row = 0; row < call.num_rows; ++row)
        for (int64_t i = 0; i < call.head_dim; i += kLanes)
            store_part(call.out + row * call.head_dim + i, call.head_dim - i,
                       load(sums + row * padded + i) / broadcast(total[row]));
}

}  // namespace splitrank::cpu_kernels
