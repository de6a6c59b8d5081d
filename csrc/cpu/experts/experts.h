// Parts of the mixture of experts (see serial.h): one expert's rows with some of its panels.
#pragma once

#include "../linear/tile.h"
#include "../simd/values.h"

namespace splitrank::cpu_kernels {

inline void gate_up(const float* inputs, int64_t stride, const int64_t* rows, int64_t num_rows, const Weight& weight,
                    int64_t first, int64_t last, DType rounded, float* activations, int64_t activation_stride) {
    float sums[kMostRows * 2 * kPanel];
    for (int64_t panel = 2 * first; panel < 2 * last;) {
        const int num_panels = panels_of_tile(num_rows, panel, 2 * last);
        for (int64_t row = 0; row < num_rows;) {
            const int count = rows_of_tile(num_rows - row);
            const float* x[kMostRows];
            for (int i = 0; i < count; ++i) x[i] = inputs + rows[row + i] * stride;
            shard_tile(count, num_panels, x, weight, panel, 0, 0, sums);
            for (int i = 0; i < count; ++i)
                for (int at = 0; at < num_panels / 2 * kPanel; at += kLanes) {
                    const float* gate = sums + 2 * i * kPanel + at / kPanel * 2 * kPanel + at % kPanel;
                    const Vec activation = silu(load(gate)) * load(gate + kPanel);
                    store(activations + (row + i) * activation_stride + panel / 2 * kPanel + at,
                          rounded_to(rounded, activation));
                }
            row += count;
        }
        panel += num_panels;
    }
}

inline void down(const float* activations, int64_t stride, const int64_t* rows, const float* factors, int64_t num_rows,
                 const Weight& weight, int64_t first, int64_t last, float* sums) {
    const int64_t width = (last - first) * kPanel;
    float products[kMostRows * 2 * kPanel];
    for (int64_t panel = first; panel < last;) {
        const int num_panels = panels_of_tile(num_rows, panel, last);
        for (int64_t row = 0; row < num_rows;) {
            const int count = rows_of_tile(num_rows - row);
            const float* x[kMostRows];
            for (int i = 0; i < count; ++i) x[i] = activations + (row + i) * stride;
            for (int64_t shard = 0, offset = 0; shard < weight.num_shards; ++shard) {
                shard_tile(count, num_panels, x, weight, panel, shard, offset, products);
                offset += weight.stored(shard);
                for (int i = 0; i < count; ++i) {
                    float* to = sums + (rows[row + i] * weight.num_shards + shard) * width + (panel - first) * kPanel;
                    const Vec factor = broadcast(factors[row + i]);
                    for (int at = 0; at < num_panels * kPanel; at += kLanes)
                        store(to + at, fma(factor, load(products + i * 2 * kPanel + at), load(to + at)));
                }
            }
            row += count;
        }
        panel += num_panels;
    }
}

inline void combine(const float* sums, int64_t num_rows, const Weight& weight, int64_t first, int64_t last,
                    const Values& out) {
    const int width = int(last - first) * kPanel;
    for (int64_t row = 0; row < num_rows; ++row) {
        float shards[cpu::kShards * cpu::kMostDownPanels * kPanel];
        std::memcpy(shards, sums + row * weight.num_shards * width, size_t(weight.num_shards * width) * sizeof(float));
        for (int64_t step = 1; step < weight.num_shards; step *= 2)
            for (int64_t shard = 0; shard < weight.num_shards; shard += 2 * step)
                add_to(shards + shard * width, shards + (shard + step) * width, width);
        for (int64_t panel = first; panel < last; ++panel)
            store_panel(shards + (panel - first) * kPanel, out, row, panel * kPanel, weight.num_outputs);
    }
}

}  // namespace splitrank::cpu_kernels
