// The innermost product: some rows with one or two panels, one chain of multiply-adds an output.
#pragma once

#include "../kernels.h"
#include "../simd/vector.h"

namespace splitrank::cpu_kernels {

using cpu::DType;
using cpu::kMostRows;
using cpu::kPanel;
using cpu::Norm;
using cpu::Values;
using cpu::Weight;

// A tile's sums must fit into registers: rows x panels x 16 floats, beside the weights.
constexpr int kRowsOfOne = kLanes == 16 ? 8 : 6, kRowsOfTwo = kLanes == 16 ? 8 : 2;
// One row takes four panels: it waits for memory, which gives a quarter more to four streams of weights than to two.
constexpr int kPanelsOfRow = kLanes == 4 ? 2 : 4;

struct Bfloat16Weights {
    static constexpr int kStep = 2;  // inputs that lie together
    using Element = uint16_t;
    static Vec first(const uint16_t* at, int part) { return even_bfloat16(at + part * kLanes * 2); }
    static Vec second(const uint16_t* at, int part) { return odd_bfloat16(at + part * kLanes * 2); }
};

struct Float32Weights {
    static constexpr int kStep = 1;
    using Element = float;
    static Vec first(const float* at, int part) { return load(at + part * kLanes); }
    static Vec second(const float* at, int part) { return load(at + part * kLanes); }
};

// R rows x P panels: x[r][0 .. inputs) with `inputs` steps of 16 weights, `step` elements apart -> out [R][P * 16],
// to which the sums are added if `adds`.
template <class Weights, int R, int P, bool adds = false>
inline void tile(const float* const* x, int64_t num_inputs, const typename Weights::Element* weights, int64_t step,
                 int64_t panel_stride, float* out, int64_t out_stride) {
    constexpr int kVecs = P * kParts;
    Vec sums[R][kVecs];
    const float* rows[R];
    for (int row = 0; row < R; ++row) {
        rows[row] = x[row];
        for (int vec = 0; vec < kVecs; ++vec) sums[row][vec] = adds ? load(out + row * out_stride + vec * kLanes) : Vec{};
    }
    for (int64_t input = 0; input < num_inputs; input += Weights::kStep) {
        Vec values[kVecs];
        for (int vec = 0; vec < kVecs; ++vec)
            values[vec] = Weights::first(weights + (vec / kParts) * panel_stride, vec % kParts);
        for (int row = 0; row < R; ++row) {
            const Vec factor = broadcast(rows[row][input]);
            for (int vec = 0; vec < kVecs; ++vec) sums[row][vec] = fma(factor, values[vec], sums[row][vec]);
        }
        if constexpr (Weights::kStep == 2) {
            for (int vec = 0; vec < kVecs; ++vec)
                values[vec] = Weights::second(weights + (vec / kParts) * panel_stride, vec % kParts);
            for (int row = 0; row < R; ++row) {
                const Vec factor = broadcast(rows[row][input + 1]);
                for (int vec = 0; vec < kVecs; ++vec) sums[row][vec] = fma(factor, values[vec], sums[row][vec]);
            }
        }
        weights += step;
    }
    for (int row = 0; row < R; ++row)
        for (int vec = 0; vec < kVecs; ++vec) store(out + row * out_stride + vec * kLanes, sums[row][vec]);
}

template <class Weights, int P, bool adds, int R>
inline void tile_of(int num_rows, const float* const* x, int64_t num_inputs, const typename Weights::Element* weights,
                    int64_t step, int64_t panel_stride, float* out, int64_t out_stride) {
    if constexpr (R > 0) {
        if (num_rows == R)
            tile<Weights, R, P, adds>(x, num_inputs, weights, step, panel_stride, out, out_stride);
        else
            tile_of<Weights, P, adds, R - 1>(num_rows, x, num_inputs, weights, step, panel_stride, out, out_stride);
    }
}

// Up to kRowsOfOne rows x one or two panels; one row x up to four.
template <class Weights, bool adds = false>
inline void any_tile(int num_rows, int num_panels, const float* const* x, int64_t num_inputs,
                     const typename Weights::Element* weights, int64_t step, int64_t panel_stride, float* out,
                     int64_t out_stride) {
    if (num_panels == kPanelsOfRow && num_rows == 1) {
        tile<Weights, 1, kPanelsOfRow, adds>(x, num_inputs, weights, step, panel_stride, out, out_stride);
        return;
    }
    if (num_panels == 2 && num_rows <= kRowsOfTwo) {
        tile_of<Weights, 2, adds, kRowsOfTwo>(num_rows, x, num_inputs, weights, step, panel_stride, out, out_stride);
        return;
    }
    for (int panel = 0; panel < num_panels; ++panel)
        tile_of<Weights, 1, adds, kRowsOfOne>(num_rows, x, num_inputs, weights + panel * panel_stride, step, 0,
                                              out + panel * kPanel, out_stride);
}

// Panels that a tile of `num_rows` takes of [panel, last).
inline int panels_of_tile(int64_t num_rows, int64_t panel, int64_t last) {
    const int64_t most = num_rows == 1 ? kPanelsOfRow : 2, rest = last - panel;
    return int(rest >= most ? most : rest >= 2 ? 2 : rest);
}

// One shard of a packed weight: rows x panels -> out [rows][32], or one row -> [64].
inline void shard_tile(int num_rows, int num_panels, const float* const* x, const Weight& weight, int64_t panel,
                       int64_t shard, int64_t offset, float* out) {
    const float* begins[kMostRows];
    for (int row = 0; row < num_rows; ++row) begins[row] = x[row] + weight.bounds[shard];
    const int64_t stride = weight.panel_elements(), first = panel * stride + offset * kPanel;
    if (weight.dtype == DType::kBfloat16)
        any_tile<Bfloat16Weights>(num_rows, num_panels, begins, weight.stored(shard),
                                  static_cast<const uint16_t*>(weight.data) + first, 2 * kPanel, stride, out,
                                  2 * kPanel);
    else
        any_tile<Float32Weights>(num_rows, num_panels, begins, weight.stored(shard),
                                 static_cast<const float*>(weight.data) + first, kPanel, stride, out, 2 * kPanel);
}

// How many rows the next tile takes of `rest`, so that the tiles of a batch are about equal.
inline int rows_of_tile(int64_t rest) {
    if (rest <= kRowsOfOne) return int(rest);
    const int64_t tiles = (rest + kRowsOfOne - 1) / kRowsOfOne;
    return int((rest + tiles - 1) / tiles);
}

// Adds b to a, of `count` floats (a multiple of 16).
inline void add_to(float* a, const float* b, int count) {
    for (int i = 0; i < count; i += kLanes) store(a + i, load(a + i) + load(b + i));
}

// Sixteen floats -> columns [column, column + 16) of a row, as far as there are so many.
inline void store_panel(const float* sums, const Values& out, int64_t row, int64_t column, int64_t num_columns) {
    const int64_t at = row * out.stride + column, count = num_columns - column;
    if (out.dtype == DType::kBfloat16) {
        uint16_t* to = static_cast<uint16_t*>(out.data) + at;
        if (count >= kPanel)
            for (int part = 0; part < kParts; ++part) store_bfloat16(to + part * kLanes, load(sums + part * kLanes));
        else
            for (int64_t i = 0; i < count; ++i) to[i] = to_bfloat16(sums[i]);
    } else {
        std::memcpy(static_cast<float*>(out.data) + at, sums, size_t(count < kPanel ? count : kPanel) * sizeof(float));
    }
}

}  // namespace splitrank::cpu_kernels
