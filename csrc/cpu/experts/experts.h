// Parts of the mixture of experts (see serial.h): one expert's rows with some of its panels.
#pragma once

#include "../linear/tile.h"
#include "../simd/values.h"

namespace splitrank::cpu_kernels {

inline void gate_up(const float* inputs, int64_t stride, const int64_t* rows, int64_t num_rows, const Weight& weight,
                    int64_t first, int64_t last, DType rounded, float* activations, int64_t activation_stride) {
    float sums[kMostRows * 2 * kPanel];
    for (int64_t pair = first; pair < last; ++pair)
        for (int64_t row = 0; row < num_rows;) {
            const int count = rows_of_tile(num_rows - row);
            const float* x[kMostRows];
            for (int i = 0; i < count; ++i) x[i] = inputs + rows[row + i] * stride;
            shard_tile(count, 2, x, weight, 2 * pair, 0, 0, sums);
            for (int i = 0; i < count; ++i)
                for (int part = 0; part < kParts; ++part) {
                    const float* gate = sums + 2 * i * kPanel + part * kLanes;
                    const Vec activation = silu(load(gate)) * load(gate + kPanel);
                    store(activations + (row + i) * activation_stride + pair * kPanel + part * kLanes,
                          rounded_to(rounded, activation));
                }
            row += count;
        }
}

inline void down(const float* activations, int64_t stride, const int64_t* rows, const float* factors, int64_t num_rows,
                 const Weight& weight, int64_t panel, float* sums) {
    constexpr int kWidth = 2 * kPanel;
    const int num_panels = panel + 1 < weight.num_panels() ? 2 : 1;
    float products[kMostRows * kWidth];
    for (int64_t row = 0; row < num_rows;) {
        const int count = rows_of_tile(num_rows - row);
        const float* x[kMostRows];
        for (int i = 0; i < count; ++i) x[i] = activations + (row + i) * stride;
        for (int64_t shard = 0, offset = 0; shard < weight.num_shards; ++shard) {
            shard_tile(count, num_panels, x, weight, panel, shard, offset, products);
            offset += weight.stored(shard);
            for (int i = 0; i < count; ++i) {
                float* to = sums + (rows[row + i] * weight.num_shards + shard) * kWidth;
                const Vec factor = broadcast(factors[row + i]);
                for (int at = 0; at < num_panels * kPanel; at += kLanes)
                    store(to + at, fma(factor, load(products + i * kWidth + at), load(to + at)));
            }
        }
        row += count;
    }
}

inline void combine(const float* sums, int64_t num_rows, const Weight& weight, int64_t panel, const Values& out) {
    constexpr int kWidth = 2 * kPanel;
    for (int64_t row = 0; row < num_rows; ++row) {
        float shards[cpu::kShards * kWidth];
        std::memcpy(shards, sums + row * weight.num_shards * kWidth, size_t(weight.num_shards * kWidth) * sizeof(float));
        for (int64_t width = 1; width < weight.num_shards; width *= 2)
            for (int64_t shard = 0; shard < weight.num_shards; shard += 2 * width)
                add_to(shards + shard * kWidth, shards + (shard + width) * kWidth, kWidth);
        store_panel(shards, out, row, panel * kPanel, weight.num_outputs);
        if (panel + 1 < weight.num_panels())
            store_panel(shards + kPanel, out, row, (panel + 1) * kPanel, weight.num_outputs);
    }
}

}  // namespace splitrank::cpu_kernels
