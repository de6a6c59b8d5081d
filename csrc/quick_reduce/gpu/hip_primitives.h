// AMD's primitives (gfx90a, gfx942, gfx950), in clang builtins only: what they are and promise stands in executor.h.
//
// Two traps, both seen in the assembly; scripts/check_amd_isa.py looks for them in every kernel:
//  * clang drops the wait between the write-back and the store of a system-scope release store. Here a flag store is
//    one piece of assembly, write-back, wait and store, that no pass can take apart (a fence may end up in another
//    block than its store).
//  * No wait is emitted before s_barrier, so that other waves' stores may be in flight when one lane publishes. Here
//    every barrier waits for its wave's stores, and drain_stores writes them back besides.
#pragma once

#include "../portability.h"

// How the machine writes its caches back to system scope, and the bits of a store that goes past them.
#if defined(__gfx90a__)
#define QR_WRITE_BACK "buffer_wbl2"
#define QR_SYSTEM_SCOPE ""
#elif defined(__gfx942__) || defined(__gfx950__)
#define QR_WRITE_BACK "buffer_wbl2 sc0 sc1"
#define QR_SYSTEM_SCOPE " sc0 sc1"
#elif defined(__HIP_DEVICE_COMPILE__)
#error "splitrank: the quick all-reduce is written for gfx90a, gfx942 and gfx950"
#else  // the host's pass reads device code, too
#define QR_WRITE_BACK ""
#define QR_SYSTEM_SCOPE ""
#endif

namespace splitrank::quick_reduce::gpu {

constexpr int kWaveSize = 64;

struct alignas(16) Vector16 {
    uint32_t x, y, z, w;
};

namespace detail {

constexpr uint32_t kMaxWaves = 1024 / kWaveSize;

// Named as global memory: through generic pointers clang emits flat instructions, which also count as LDS traffic.
template <class T>
using Global = __attribute__((address_space(1))) T;

typedef uint32_t Quad __attribute__((ext_vector_type(4), may_alias));
typedef uint64_t Word8 __attribute__((may_alias));
typedef uint32_t Word4 __attribute__((may_alias));
typedef uint16_t Word2 __attribute__((may_alias));

// Loads and stores count alike on these machines.
QR_DEVICE void wait_for_memory() { asm volatile("s_waitcnt vmcnt(0)" ::: "memory"); }

// After it, this wave's stores are performed for the host and for all devices: what was dirty is written back.
QR_DEVICE void release_system() {
    __builtin_amdgcn_fence(__ATOMIC_RELEASE, "");  // "" is the system
    wait_for_memory();
}

// Loads after it see what was released before the flag that was loaded before it: stale lines are invalidated.
QR_DEVICE void acquire_system() { __builtin_amdgcn_fence(__ATOMIC_ACQUIRE, ""); }

template <int QuadPermutation>
QR_DEVICE uint32_t permute_quad(uint32_t value) {
    return uint32_t(__builtin_amdgcn_update_dpp(int(value), int(value), QuadPermutation, 0xf, 0xf, true));
}

}  // namespace detail

QR_DEVICE uint32_t thread_index() { return __builtin_amdgcn_workitem_id_x(); }
QR_DEVICE uint32_t num_threads() { return __builtin_amdgcn_workgroup_size_x(); }
QR_DEVICE uint32_t block_index() { return __builtin_amdgcn_workgroup_id_x(); }
QR_DEVICE uint32_t block_row() { return __builtin_amdgcn_workgroup_id_y(); }

QR_DEVICE void wait_for_previous() {}  // a launch starts when those before it have ended

QR_DEVICE void drain_stores() { detail::release_system(); }

QR_DEVICE void block_barrier() {
    __builtin_amdgcn_fence(__ATOMIC_RELEASE, "workgroup");
    detail::wait_for_memory();
    __builtin_amdgcn_s_barrier();
    __builtin_amdgcn_fence(__ATOMIC_ACQUIRE, "workgroup");
}

QR_DEVICE bool block_all(bool ok) {
    __shared__ uint32_t wave_failed[detail::kMaxWaves];
    const bool failed = __builtin_amdgcn_ballot_w64(!ok) != 0;
    if (thread_index() % kWaveSize == 0) wave_failed[thread_index() / kWaveSize] = failed;
    block_barrier();
    uint32_t any_failed = 0;
    for (uint32_t wave = 0; wave * kWaveSize < num_threads(); ++wave) any_failed |= wave_failed[wave];
    block_barrier();  // nobody writes again before everybody has read
    return any_failed == 0;
}

// The waves of a block share the cache that load_acquire_system invalidated (or, where the compiler was told that they
// do not, block_barrier's acquire invalidates each).
QR_DEVICE void acquire_block() {}

QR_DEVICE void store_release_system(uint64_t* to, uint64_t value) {
    asm volatile(QR_WRITE_BACK "\n\ts_waitcnt vmcnt(0)\n\tglobal_store_dwordx2 %0, %1, off" QR_SYSTEM_SCOPE ::"v"(to),
                 "v"(value)
                 : "memory");
}
QR_DEVICE void store_release_system(uint32_t* to, uint32_t value) {
    asm volatile(QR_WRITE_BACK "\n\ts_waitcnt vmcnt(0)\n\tglobal_store_dword %0, %1, off" QR_SYSTEM_SCOPE ::"v"(to),
                 "v"(value)
                 : "memory");
}
QR_DEVICE uint64_t load_acquire_system(const uint64_t* from) {
    const uint64_t value =
        __scoped_atomic_load_n((detail::Global<const uint64_t>*)from, __ATOMIC_RELAXED, __MEMORY_SCOPE_SYSTEM);
    detail::acquire_system();
    return value;
}

// Twice a call: at system scope like all others, so that one rule holds for every release.
QR_DEVICE uint32_t exchange_device(uint32_t* word, uint32_t value) {
    detail::release_system();
    const uint32_t before = __scoped_atomic_exchange_n((detail::Global<uint32_t>*)word, value, __ATOMIC_RELAXED,
                                                       __MEMORY_SCOPE_SYSTEM);
    detail::acquire_system();
    return before;
}
QR_DEVICE uint64_t fetch_or_device(uint64_t* word, uint64_t bits) {
    detail::release_system();
    const uint64_t before = __scoped_atomic_fetch_or((detail::Global<uint64_t>*)word, bits, __ATOMIC_RELAXED,
                                                     __MEMORY_SCOPE_DEVICE);  // the system's would be a loop
    detail::acquire_system();
    return before;
}
QR_DEVICE void store_device(uint64_t* to, uint64_t value) {
    __scoped_atomic_store_n((detail::Global<uint64_t>*)to, value, __ATOMIC_RELAXED, __MEMORY_SCOPE_DEVICE);
}
QR_DEVICE uint64_t load_relaxed_system(const uint64_t* from) {
    return __scoped_atomic_load_n((detail::Global<const uint64_t>*)from, __ATOMIC_RELAXED, __MEMORY_SCOPE_SYSTEM);
}
QR_DEVICE uint64_t& shared_word() {
    __shared__ uint64_t word;
    return word;
}
QR_DEVICE bool claim_system(uint32_t* word, uint32_t value) {
    detail::release_system();
    uint32_t zero = 0;
    const bool first = __scoped_atomic_compare_exchange_n((detail::Global<uint32_t>*)word, &zero, value, false,
                                                          __ATOMIC_RELAXED, __ATOMIC_RELAXED, __MEMORY_SCOPE_SYSTEM);
    detail::acquire_system();
    return first;
}
QR_DEVICE uint32_t arrive_device(uint32_t* counter) {
    detail::release_system();
    const uint32_t before =
        __scoped_atomic_fetch_add((detail::Global<uint32_t>*)counter, 1u, __ATOMIC_RELAXED, __MEMORY_SCOPE_DEVICE);
    detail::acquire_system();
    return before;
}

// s_memrealtime does not follow the core clock: it counts at 25 MHz up to gfx90a and at 100 MHz from gfx942 on (LLVM's
// libc, time_utils.h).
#if defined(__gfx90a__)
constexpr uint64_t kTickNs = 40;
#else
constexpr uint64_t kTickNs = 10;
#endif
QR_DEVICE uint64_t now_ns() { return __builtin_amdgcn_s_memrealtime() * kTickNs; }
QR_DEVICE void pause(uint32_t) { __builtin_amdgcn_s_sleep(1); }  // 64 cycles in which other waves issue

// By DPP, without LDS; the mask is 1 or 2 and a constant after unrolling.
QR_DEVICE uint32_t shuffle_xor(uint32_t value, int mask) {
    constexpr int kSwapNeighbours = 0xb1, kSwapPairs = 0x4e;  // lanes 1 0 3 2, and 2 3 0 1
    return mask == 1 ? detail::permute_quad<kSwapNeighbours>(value) : detail::permute_quad<kSwapPairs>(value);
}

QR_DEVICE Vector16 load_tensor(const Vector16* from) {
    return bit_cast<Vector16>(detail::Quad(*(const detail::Global<detail::Quad>*)from));
}
QR_DEVICE void store_tensor(Vector16* to, Vector16 value) {
    *(detail::Global<detail::Quad>*)to = bit_cast<detail::Quad>(value);
}

// Exchange memory is uncached, and acquires invalidate what might still be stale: a plain access would do. Written and
// read once, it should not push tensors out of the caches either. The nt bit (slc on gfx90a) also marks these accesses
// for scripts/check_amd_isa.py.
QR_DEVICE Vector16 load_exchange(const Vector16* from) {
    return bit_cast<Vector16>(__builtin_nontemporal_load((const detail::Global<detail::Quad>*)from));
}
QR_DEVICE uint64_t load_exchange(const uint64_t* from) {
    return __builtin_nontemporal_load((const detail::Global<detail::Word8>*)from);
}
QR_DEVICE uint32_t load_exchange(const uint32_t* from) {
    return __builtin_nontemporal_load((const detail::Global<detail::Word4>*)from);
}
QR_DEVICE uint16_t load_exchange(const uint16_t* from) {
    return __builtin_nontemporal_load((const detail::Global<detail::Word2>*)from);
}

QR_DEVICE void store_exchange(Vector16* to, Vector16 value) {
    __builtin_nontemporal_store(bit_cast<detail::Quad>(value), (detail::Global<detail::Quad>*)to);
}
QR_DEVICE void store_exchange(uint64_t* to, uint64_t value) {
    __builtin_nontemporal_store(value, (detail::Global<detail::Word8>*)to);
}
QR_DEVICE void store_exchange(uint32_t* to, uint32_t value) {
    __builtin_nontemporal_store(value, (detail::Global<detail::Word4>*)to);
}
QR_DEVICE void store_exchange(uint16_t* to, uint16_t value) {
    __builtin_nontemporal_store(value, (detail::Global<detail::Word2>*)to);
}

}  // namespace splitrank::quick_reduce::gpu

#undef QR_WRITE_BACK
#undef QR_SYSTEM_SCOPE
