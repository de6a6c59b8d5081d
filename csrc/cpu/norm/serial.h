// The specification of the norms, in double.
#pragma once

#include <cmath>
#include <cstdint>

namespace splitrank::cpu::serial {

// values [width] / rms * scale -> out
inline void rms_norm(const double* values, const double* scale, int64_t width, double eps, double* out) {
    double squares = 0;
    for (int64_t i = 0; i < width; ++i) squares += values[i] * values[i];
    const double inverse = 1 / std::sqrt(squares / double(width) + eps);
    for (int64_t i = 0; i < width; ++i) out[i] = values[i] * inverse * scale[i];
}

}  // namespace splitrank::cpu::serial
