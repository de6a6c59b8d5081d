// A vector of floats of the instruction set that the including file is compiled for: the only code that names one.
//
// Lanes are different outputs in every kernel but the sums of norms and softmax, which have 16 fixed partial sums
// (`Sixteen`). So all instruction sets with a fused multiply-add give the same bits.
#pragma once

#include <cstdint>
#include <cstring>

#if defined(__AVX2__)
#include <immintrin.h>
#endif

namespace splitrank::cpu_kernels {

// A test may choose the lanes, to run wide kernels on a machine that has no such instructions.
#if defined(SPLITRANK_LANES)
constexpr int kLanes = SPLITRANK_LANES;
#elif defined(__AVX512F__)
constexpr int kLanes = 16;
#elif defined(__AVX2__)
constexpr int kLanes = 8;
#else
constexpr int kLanes = 4;
#endif

typedef float Vec __attribute__((vector_size(kLanes * 4)));
typedef uint32_t Bits __attribute__((vector_size(kLanes * 4)));
typedef uint16_t Halves __attribute__((vector_size(kLanes * 2)));

template <class To, class From>
inline To load_as(const From* from) {
    To value;
    std::memcpy(&value, from, sizeof(value));
    return value;
}

inline Vec load(const float* from) { return load_as<Vec>(from); }
inline void store(float* to, Vec value) { std::memcpy(to, &value, sizeof(value)); }

inline Vec broadcast(float value) {
#if defined(SPLITRANK_LANES)
    Vec lanes;
    for (int lane = 0; lane < kLanes; ++lane) lanes[lane] = value;
    return lanes;
#elif defined(__AVX512F__)
    return (Vec)_mm512_set1_ps(value);
#elif defined(__AVX2__)
    return (Vec)_mm256_set1_ps(value);
#else
    return Vec{value, value, value, value};
#endif
}

// a * b + c, rounded once wherever the machine can.
inline Vec fma(Vec a, Vec b, Vec c) {
#if defined(SPLITRANK_LANES) || defined(__aarch64__)
    Vec sum;
    for (int lane = 0; lane < kLanes; ++lane) sum[lane] = __builtin_fmaf(a[lane], b[lane], c[lane]);
    return sum;
#elif defined(__AVX512F__)
    return (Vec)_mm512_fmadd_ps((__m512)a, (__m512)b, (__m512)c);
#elif defined(__AVX2__)
    return (Vec)_mm256_fmadd_ps((__m256)a, (__m256)b, (__m256)c);
#else
    return a * b + c;
#endif
}

// The same of one number: through a vector, so that it has the same bits.
inline float fma1(float a, float b, float c) { return fma(broadcast(a), broadcast(b), broadcast(c))[0]; }

// Of 16-bit pairs (first, second): the first ones, or the second ones, as floats.
inline Vec even_bfloat16(const uint16_t* pairs) { return (Vec)(load_as<Bits>(pairs) << 16); }
inline Vec odd_bfloat16(const uint16_t* pairs) { return (Vec)(load_as<Bits>(pairs) & 0xffff0000u); }

inline Vec load_bfloat16(const uint16_t* from) {
    return (Vec)(__builtin_convertvector(load_as<Halves>(from), Bits) << 16);
}

inline float widen(uint16_t value) {
    const uint32_t bits = uint32_t(value) << 16;
    return load_as<float>(&bits);
}

// To the nearest, ties to even; a NaN stays one.
inline uint16_t to_bfloat16(float value) {
    const uint32_t bits = load_as<uint32_t>(&value);
    if (value != value) return uint16_t(bits >> 16 | 0x40);
    return uint16_t((bits + 0x7fff + (bits >> 16 & 1)) >> 16);
}

inline void store_bfloat16(uint16_t* to, Vec value) {
    const Bits bits = (Bits)value;
    const Bits rounded = (bits + 0x7fff + (bits >> 16 & 1)) >> 16;
    const Bits quiet = bits >> 16 | 0x40;
    const Halves halves = __builtin_convertvector(value != value ? quiet : rounded, Halves);
    std::memcpy(to, &halves, sizeof(halves));
}

// e^x with a relative error of 2e-7 at most; a NaN stays one. Cody and Waite's reduction, a polynomial of degree 6
// (Cephes, expf), and the exponent added to the bits.
inline Vec exp(Vec x) {
    x = x < -87.0f ? broadcast(-87.0f) : x;
    x = x > 88.0f ? broadcast(88.0f) : x;
    const Vec shifter = broadcast(12582912.0f);  // 1.5 * 2^23: adding it rounds to an integer
    const Vec shifted = fma(x, broadcast(1.44269504f), shifter), whole = shifted - shifter;
    Vec rest = fma(whole, broadcast(-0.693359375f), x);
    rest = fma(whole, broadcast(2.12194440e-4f), rest);
    constexpr float kCoefficients[] = {1.3981999507e-3f, 8.3334519073e-3f, 4.1665795894e-2f, 1.6666665459e-1f,
                                       5.0000001201e-1f};
    Vec sum = broadcast(1.9875691500e-4f);
    for (const float coefficient : kCoefficients) sum = fma(sum, rest, broadcast(coefficient));
    sum = fma(sum, rest * rest, rest) + broadcast(1.0f);
    const Bits power = (Bits)shifted - (Bits)shifter;  // unsigned: of a NaN the sum may overflow
    const Vec scaled = (Vec)((Bits)sum + (power << 23));
    return x == x ? scaled : x;
}

inline Vec sigmoid(Vec x) { return broadcast(1.0f) / (broadcast(1.0f) + exp(-x)); }
inline Vec silu(Vec x) { return x / (broadcast(1.0f) + exp(-x)); }

// Sixteen sums, whatever the vector's width: element i belongs to sum i mod 16.
constexpr int kSums = 16, kParts = kSums / kLanes;

struct Sixteen {
    Vec parts[kParts] = {};

    // Along one fixed tree.
    float total() const {
        float sums[kSums];
        for (int part = 0; part < kParts; ++part) store(sums + part * kLanes, parts[part]);
        for (int width = kSums / 2; width > 0; width /= 2)
            for (int lane = 0; lane < width; ++lane) sums[lane] += sums[lane + width];
        return sums[0];
    }
};

}  // namespace splitrank::cpu_kernels
