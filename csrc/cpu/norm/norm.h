// The norms, and what is done to their input and output on the way. A row's sum has sixteen fixed partial sums.
#pragma once

#include "../simd/values.h"

namespace splitrank::cpu_kernels {

inline float inverse_rms(const float* values, int64_t width, float eps) {
    return 1.0f / __builtin_sqrtf(sum_of_squares(values, width) / float(width) + eps);
}

inline void add_norm(const Values& hidden, const Values& residual, const Values& residual_out, int64_t row,
                     int64_t width, const Norm& norm, DType rounded, float* normed) {
    for (int64_t i = 0; i < width; i += kLanes) {
        const Vec added = rounded_to(rounded, load_values(hidden, row * hidden.stride + i, width - i));
        const Vec sum = load_values(residual, row * residual.stride + i, width - i) + added;
        store_values(residual_out, row * residual_out.stride + i, width - i, sum);
        store_part(normed + i, width - i, rounded_to(rounded, sum));
    }
    const Vec inverse = broadcast(inverse_rms(normed, width, norm.eps));
    for (int64_t i = 0; i < width; i += kLanes) {
        const Vec value = load_part(normed + i, width - i) * inverse * load_part(norm.scale + i, width - i);
        store_part(normed + i, width - i, rounded_to(rounded, value));
    }
}

inline void gated_norm(const float* values, const Values& gate, int64_t row, int64_t gate_offset, int64_t width,
                       const Norm& norm, const Values& out, int64_t out_offset) {
    const Vec inverse = broadcast(inverse_rms(values, width, norm.eps));
    for (int64_t i = 0; i < width; i += kLanes) {
        const int64_t rest = width - i;
        const Vec normed = load_part(values + i, rest) * inverse * load_part(norm.scale + i, rest);
        const Vec factor = silu(load_values(gate, row * gate.stride + gate_offset + i, rest));
        store_values(out, row * out.stride + out_offset + i, rest, normed * factor);
    }
}

inline void norm_rotate(const Values& in, int64_t row, int64_t offset, int64_t width, const Norm& norm,
                        const float* cos_sin, int64_t rotary_dim, float* out) {
    const int64_t at = row * in.stride + offset;
    for (int64_t i = 0; i < width; i += kLanes) store_part(out + i, width - i, load_values(in, at + i, width - i));
    const Vec inverse = broadcast(inverse_rms(out, width, norm.eps));
    for (int64_t i = 0; i < width; i += kLanes)
        store_part(out + i, width - i, load_part(out + i, width - i) * inverse * load_part(norm.scale + i, width - i));
    const int64_t half = rotary_dim / 2;
    for (int64_t i = 0; i < half; ++i) {
        const float first = out[i], second = out[half + i], cosine = cos_sin[i], sine = cos_sin[half + i];
        out[i] = first * cosine - second * sine;
        out[half + i] = second * cosine + first * sine;
    }
}

inline void convert(const Values& from, int64_t row, int64_t offset, int64_t width, float* to) {
    for (int64_t i = 0; i < width; i += kLanes)
        store_part(to + i, width - i, load_values(from, row * from.stride + offset + i, width - i));
}

inline void round(const float* from, int64_t width, const Values& to, int64_t row, int64_t offset) {
    for (int64_t i = 0; i < width; i += kLanes)
        store_values(to, row * to.stride + offset + i, width - i, load_part(from + i, width - i));
}

inline void gate(const float* values, const Values& gate, int64_t row, int64_t gate_offset, int64_t width,
                 const Values& out, int64_t out_offset) {
    for (int64_t i = 0; i < width; i += kLanes) {
        const Vec factor = sigmoid(load_values(gate, row * gate.stride + gate_offset + i, width - i));
        store_values(out, row * out.stride + out_offset + i, width - i, load_part(values + i, width - i) * factor);
    }
}

}  // namespace splitrank::cpu_kernels
