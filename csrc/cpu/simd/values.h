// Rows of float32 or bfloat16 as vectors of floats; the last vector of a row may be partly filled.
#pragma once

#include "../kernels.h"
#include "vector.h"

namespace splitrank::cpu_kernels {

using cpu::DType;
using cpu::Norm;
using cpu::Values;

inline Vec load_part(const float* from, int64_t count) {
    if (count >= kLanes) return load(from);
    float lanes[kLanes] = {};
    std::memcpy(lanes, from, size_t(count) * sizeof(float));
    return load(lanes);
}

inline void store_part(float* to, int64_t count, Vec value) {
    if (count >= kLanes) return store(to, value);
    float lanes[kLanes];
    store(lanes, value);
    std::memcpy(to, lanes, size_t(count) * sizeof(float));
}

// Elements [at, at + count) of `values`; count may be more than there are lanes.
inline Vec load_values(const Values& values, int64_t at, int64_t count) {
    if (values.dtype == DType::kFloat32) return load_part(static_cast<const float*>(values.data) + at, count);
    const uint16_t* from = static_cast<const uint16_t*>(values.data) + at;
    if (count >= kLanes) return load_bfloat16(from);
    uint16_t lanes[kLanes] = {};
    std::memcpy(lanes, from, size_t(count) * sizeof(uint16_t));
    return load_bfloat16(lanes);
}

inline void store_values(const Values& values, int64_t at, int64_t count, Vec value) {
    if (values.dtype == DType::kFloat32) return store_part(static_cast<float*>(values.data) + at, count, value);
    uint16_t* to = static_cast<uint16_t*>(values.data) + at;
    if (count >= kLanes) return store_bfloat16(to, value);
    uint16_t lanes[kLanes];
    store_bfloat16(lanes, value);
    std::memcpy(to, lanes, size_t(count) * sizeof(uint16_t));
}

inline Vec rounded_to(DType dtype, Vec value) {
    if (dtype == DType::kFloat32) return value;
    uint16_t lanes[kLanes];
    store_bfloat16(lanes, value);
    return load_bfloat16(lanes);
}

// Sum of squares, in sixteen partial sums.
inline float sum_of_squares(const float* values, int64_t width) {
    Sixteen sums;
    for (int64_t begin = 0; begin < width; begin += kSums)
        for (int part = 0; part < kParts; ++part) {
            const int64_t at = begin + part * kLanes;
            if (at >= width) break;
            const Vec value = load_part(values + at, width - at);
            sums.parts[part] = fma(value, value, sums.parts[part]);
        }
    return sums.total();
}

}  // namespace splitrank::cpu_kernels
