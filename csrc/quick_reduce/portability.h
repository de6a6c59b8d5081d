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

// (word & mask) | bits. nvcc makes two instructions of it if both are constants.
QR_FN uint32_t and_or(uint32_t word, uint32_t mask, uint32_t bits) {
#if defined(__CUDA_ARCH__)
    uint32_t result;
    asm("lop3.b32 %0, %1, %2, %3, 0xea;" : "=r"(result) : "r"(word), "r"(mask), "r"(bits));
    return result;
#else
    return (word & mask) | bits;
#endif
}

QR_FN uint64_t divide_up(uint64_t a, uint64_t b) { return (a + b - 1) / b; }
QR_FN uint64_t round_up(uint64_t a, uint64_t b) { return divide_up(a, b) * b; }
QR_FN uint64_t smaller(uint64_t a, uint64_t b) { return a < b ? a : b; }

}  // namespace splitrank::quick_reduce
