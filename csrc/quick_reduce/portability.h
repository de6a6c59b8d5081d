// What differs between the compilers of the three targets, and nothing else: host (g++, clang++), CUDA, HIP.
#pragma once

#include <cstddef>
#include <cstdint>

#if defined(__CUDACC__) || defined(__HIP__)
#define QR_TARGET_GPU 1
#define QR_FN __host__ __device__ __forceinline__  // plans and addresses: the same on both sides
#define QR_DEVICE __device__ __forceinline__       // the protocol: where the executor runs
#else
#define QR_TARGET_GPU 0
#define QR_FN inline
#define QR_DEVICE inline
#endif

#if QR_TARGET_GPU
#define QR_UNROLL _Pragma("unroll")
#else
#define QR_UNROLL
#endif

namespace splitrank::quick_reduce {

constexpr int kMaxWorldSize = 8;

template <class To, class From>
QR_FN To bit_cast(const From& from) {
    static_assert(sizeof(To) == sizeof(From));
    To to;
    __builtin_memcpy(&to, &from, sizeof(To));
    return to;
}

QR_FN uint64_t divide_up(uint64_t a, uint64_t b) { return (a + b - 1) / b; }
QR_FN uint64_t round_up(uint64_t a, uint64_t b) { return divide_up(a, b) * b; }
QR_FN uint64_t smaller(uint64_t a, uint64_t b) { return a < b ? a : b; }

}  // namespace splitrank::quick_reduce
