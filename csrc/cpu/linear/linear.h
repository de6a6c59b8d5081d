// x W^T over packed weights (see serial.h), and the packing.
#pragma once

#include "tile.h"

namespace splitrank::cpu_kernels {

// Along the tree: sums of shards [shards][rows][32] -> the first.
inline void add_shards(float (*sums)[kMostRows * 2 * kPanel], int64_t num_shards, int num_rows) {
    for (int64_t width = 1; width < num_shards; width *= 2)
        for (int64_t shard = 0; shard < num_shards; shard += 2 * width)
            add_to(sums[shard], sums[shard + width], num_rows * 2 * kPanel);
}

inline void linear(const float* inputs, int64_t stride, int64_t num_rows, const Weight& weight, int64_t first,
                   int64_t last, const Values& out) {
    float sums[cpu::kShards][kMostRows * 2 * kPanel] = {};
    for (int64_t panel = first; panel < last;) {
        const int num_panels = panels_of_tile(num_rows, panel, last);
        for (int64_t row = 0; row < num_rows;) {
            const int count = rows_of_tile(num_rows - row);
            const float* x[kMostRows];
            for (int i = 0; i < count; ++i) x[i] = inputs + (row + i) * stride;
            for (int64_t shard = 0, offset = 0; shard < weight.num_shards; ++shard) {
                shard_tile(count, num_panels, x, weight, panel, shard, offset, sums[shard]);
                offset += weight.stored(shard);
            }
            add_shards(sums, weight.num_shards, num_panels > 2 ? num_panels / 2 : count);
            for (int i = 0; i < count; ++i)
                for (int part = 0; part < num_panels; ++part)
                    store_panel(sums[0] + (2 * i + part) * kPanel, out, row + i, (panel + part) * kPanel,
                                weight.num_outputs);
            row += count;
        }
        panel += num_panels;
    }
}

template <class Element>
inline void pack_panel(const void* const* rows, const Weight& weight, Element* panel) {
    const int64_t step = weight.dtype == DType::kBfloat16 ? 2 : 1;
    for (int64_t shard = 0; shard < weight.num_shards; ++shard) {
        const int64_t begin = weight.bounds[shard], end = weight.bounds[shard + 1];
        for (int output = 0; output < kPanel; ++output) {
            const Element* row = static_cast<const Element*>(rows[output]);
            Element* to = panel + output * step;
            for (int64_t input = begin; input < begin + weight.stored(shard); input += step, to += step * kPanel)
                for (int64_t i = 0; i < step; ++i) to[i] = row && input + i < end ? row[input + i] : Element(0);
        }
        panel += weight.stored(shard) * kPanel;
    }
}

inline void pack(const void* const* rows, const Weight& weight, void* panel) {
    if (weight.dtype == DType::kBfloat16)
        pack_panel(rows, weight, static_cast<uint16_t*>(panel));
    else
        pack_panel(rows, weight, static_cast<float*>(panel));
}

}  // namespace splitrank::cpu_kernels
