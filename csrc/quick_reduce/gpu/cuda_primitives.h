// NVIDIA's primitives, in PTX: what they are and promise stands in executor.h.
//
// A release store by one lane after the block's barrier covers all lanes' stores, and a weak load after a barrier sees
// what a lane before it acquired: causality order in the PTX memory model passes through both.
#pragma once

#include "../portability.h"

#define QR_GRID_CONSTANT __grid_constant__  // arguments stay in constant memory; without it, a local copy
#define QR_WHOLE_WORDS                      // .b128 is a scalar: one access, where .v4.u32 would be four

namespace splitrank::quick_reduce::gpu {

constexpr int kWaveSize = 32;

using Vector16 = uint4;

QR_DEVICE uint32_t thread_index() { return threadIdx.x; }
QR_DEVICE uint32_t num_threads() { return blockDim.x; }
QR_DEVICE uint32_t block_index() { return blockIdx.x; }
QR_DEVICE uint32_t block_row() { return blockIdx.y; }

// Waits until all launches before this one have ended, and then lets the next one start. No block of that one starts
// before every block of this grid has come here: all are resident by then.
QR_DEVICE void wait_for_previous() {
#if __CUDA_ARCH__ >= 900
    asm volatile("griddepcontrol.wait;" ::: "memory");
    asm volatile("griddepcontrol.launch_dependents;" ::: "memory");
#endif
}

QR_DEVICE void drain_stores() {}
QR_DEVICE void block_barrier() { __syncthreads(); }
QR_DEVICE bool block_all(bool ok) { return __syncthreads_and(ok); }
QR_DEVICE void acquire_block() {}

QR_DEVICE void store_release_system(uint64_t* to, uint64_t value) {
    asm volatile("st.release.sys.global.u64 [%0], %1;" ::"l"(to), "l"(value) : "memory");
}
QR_DEVICE void store_release_system(uint32_t* to, uint32_t value) {
    asm volatile("st.release.sys.global.u32 [%0], %1;" ::"l"(to), "r"(value) : "memory");
}
QR_DEVICE uint64_t load_acquire_system(const uint64_t* from) {
    uint64_t value;
    asm volatile("ld.acquire.sys.global.u64 %0, [%1];" : "=l"(value) : "l"(from) : "memory");
    return value;
}
QR_DEVICE uint32_t exchange_device(uint32_t* word, uint32_t value) {
    uint32_t before;
    // Relaxed: the ticket orders nothing, it only shows an overlap; acq_rel would cost two fences before the first load.
    asm volatile("atom.relaxed.gpu.global.exch.b32 %0, [%1], %2;" : "=r"(before) : "l"(word), "r"(value) : "memory");
    return before;
}
QR_DEVICE uint64_t fetch_or_device(uint64_t* word, uint64_t bits) {
    uint64_t before;
    asm volatile("atom.relaxed.gpu.global.or.b64 %0, [%1], %2;" : "=l"(before) : "l"(word), "l"(bits) : "memory");
    return before;
}
QR_DEVICE void store_device(uint64_t* to, uint64_t value) {
    asm volatile("st.relaxed.gpu.global.u64 [%0], %1;" ::"l"(to), "l"(value) : "memory");
}
QR_DEVICE uint64_t load_relaxed_system(const uint64_t* from) {
    uint64_t value;
    asm volatile("ld.relaxed.sys.global.u64 %0, [%1];" : "=l"(value) : "l"(from) : "memory");
    return value;
}
QR_DEVICE Vector16 load_whole_system(const Vector16* from) {
    uint64_t low, high;
    asm volatile("{\n\t.reg .b128 word;\n\tld.relaxed.sys.global.b128 word, [%2];\n\tmov.b128 {%0, %1}, word;\n\t}"
                 : "=l"(low), "=l"(high)
                 : "l"(from)
                 : "memory");
    return {uint32_t(low), uint32_t(low >> 32), uint32_t(high), uint32_t(high >> 32)};
}
QR_DEVICE void store_whole_system(Vector16* to, Vector16 value) {
    const uint64_t low = uint64_t(value.y) << 32 | value.x, high = uint64_t(value.w) << 32 | value.z;
    asm volatile("{\n\t.reg .b128 word;\n\tmov.b128 word, {%1, %2};\n\tst.relaxed.sys.global.b128 [%0], word;\n\t}" ::"l"(to),
                 "l"(low), "l"(high)
                 : "memory");
}
QR_DEVICE void fence_system() { asm volatile("fence.acq_rel.sys;" ::: "memory"); }
QR_DEVICE uint64_t& shared_word() {
    __shared__ uint64_t word;
    return word;
}
QR_DEVICE bool claim_system(uint32_t* word, uint32_t value) {
    uint32_t before;
    asm volatile("atom.acq_rel.sys.global.cas.b32 %0, [%1], 0, %2;" : "=r"(before) : "l"(word), "r"(value) : "memory");
    return before == 0;
}
QR_DEVICE uint32_t arrive_device(uint32_t* counter) {
    uint32_t before;
    asm volatile("atom.acq_rel.sys.global.add.u32 %0, [%1], 1;" : "=r"(before) : "l"(counter) : "memory");
    return before;
}

QR_DEVICE uint64_t now_ns() {
    uint64_t now;
    asm volatile("mov.u64 %0, %%globaltimer;" : "=l"(now));
    return now;
}
// A long wait leaves gaps between its polls for the memory accesses of others.
QR_DEVICE void pause(uint32_t spins) {
    if (spins >= 8) __nanosleep(50);
}

QR_DEVICE uint32_t shuffle_xor(uint32_t value, int mask) { return __shfl_xor_sync(0xffffffff, value, mask); }
QR_DEVICE uint32_t shuffle_from(uint32_t value, uint32_t lane, int group) {
    return __shfl_sync(0xffffffff, value, int(lane), group);
}

// Tensors pass by once: keep them out of L1. Volatile, so that a batch of loads stays ahead of its uses.
QR_DEVICE Vector16 load_tensor(const Vector16* from) {
    Vector16 value;
    asm volatile("ld.global.L1::no_allocate.v4.u32 {%0, %1, %2, %3}, [%4];"
                 : "=r"(value.x), "=r"(value.y), "=r"(value.z), "=r"(value.w)
                 : "l"(from));
    return value;
}
QR_DEVICE void store_tensor(Vector16* to, Vector16 value) {
    asm volatile("st.global.v4.u32 [%0], {%1, %2, %3, %4};" ::"l"(to), "r"(value.x), "r"(value.y), "r"(value.z),
                 "r"(value.w)
                 : "memory");
}

QR_DEVICE Vector16 load_exchange(const Vector16* from) { return load_tensor(from); }
QR_DEVICE uint64_t load_exchange(const uint64_t* from) {
    uint64_t value;
    asm volatile("ld.global.L1::no_allocate.u64 %0, [%1];" : "=l"(value) : "l"(from));
    return value;
}
QR_DEVICE uint32_t load_exchange(const uint32_t* from) {
    uint32_t value;
    asm volatile("ld.global.L1::no_allocate.u32 %0, [%1];" : "=r"(value) : "l"(from));
    return value;
}
QR_DEVICE uint16_t load_exchange(const uint16_t* from) {
    uint16_t value;
    asm volatile("ld.global.L1::no_allocate.u16 %0, [%1];" : "=h"(value) : "l"(from));
    return value;
}

QR_DEVICE void store_exchange(Vector16* to, Vector16 value) { store_tensor(to, value); }
QR_DEVICE void store_exchange(uint64_t* to, uint64_t value) {
    asm volatile("st.global.u64 [%0], %1;" ::"l"(to), "l"(value) : "memory");
}
QR_DEVICE void store_exchange(uint32_t* to, uint32_t value) {
    asm volatile("st.global.u32 [%0], %1;" ::"l"(to), "r"(value) : "memory");
}
QR_DEVICE void store_exchange(uint16_t* to, uint16_t value) {
    asm volatile("st.global.u16 [%0], %1;" ::"l"(to), "h"(value) : "memory");
}

}  // namespace splitrank::quick_reduce::gpu
