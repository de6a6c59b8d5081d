// The protocol on the lanes of a GPU block, for CUDA and HIP alike, over the primitives of one header each.
//
// What a primitives header provides, in namespace splitrank::quick_reduce::gpu, all QR_DEVICE:
//   constexpr int kWaveSize                       lanes that run in step: 32 or 64
//   uint32_t thread_index(), num_threads()        within the block
//   uint32_t block_index(), block_row()           x and y of the block in the grid
//   void wait_for_previous()                      all that launches before this one have done is done and seen. Comes before
//                                                 the first access to memory. Where a launch may start before its
//                                                 predecessor has ended (CUDA), the successor of this one starts after it
//   void drain_stores()                           called by every lane before block_barrier and a flag store: this wave's
//                                                 exchange stores are performed at system scope. Empty where a release by
//                                                 one lane covers what the barrier ordered before it (CUDA)
//   void block_barrier()                          all lanes meet; orders their accesses within the block
//   bool block_all(bool)                          the same, and true if true on each lane
//   void acquire_block()                          called by every lane after block_all: what any lane acquired before the
//                                                 barrier, this one has. Empty where the barrier does that (CUDA)
//   void store_release_system(uint64_t*, uint64_t), uint64_t load_acquire_system(const uint64_t*)
//   void store_release_system(uint32_t*, uint32_t)
//   uint32_t exchange_device(uint32_t*, uint32_t)            relaxed, this GPU's memory
//   bool claim_system(uint32_t* from_zero, uint32_t)         compare-and-swap from 0; the word is mapped host memory
//   uint32_t arrive_device(uint32_t*)                        adds 1 to this GPU's memory; release and acquire at system scope
//   uint64_t now_ns(), void pause(uint32_t spins)
//   uint32_t shuffle_xor(uint32_t value, int mask)           within 4 neighbouring lanes; all lanes of the wave take part
//   uint4-like type Vector16 {uint32_t x, y, z, w}, aligned to 16, and for N = 2, 4, 8, 16 bytes with
//   W2 = uint16_t, W4 = uint32_t, W8 = uint64_t, W16 = Vector16:
//     W load_tensor(const W*), void store_tensor(W*, W)      this rank's tensors; W16 only
//     W load_exchange(const W*), void store_exchange(W*, W)  exchange memory: own or a peer's; never from a stale cache line
// and QR_GRID_CONSTANT if by-value arguments of kernels need a word to stay where they are; and QR_WHOLE_WORDS if there are
//   Vector16 load_whole_system(const Vector16*), void store_whole_system(Vector16*, Vector16)   16 bytes in one access that
//                                                 no other splits, relaxed
#pragma once

#include "../handshake.h"
#include "../packet.h"

#if defined(__HIP__)
#include "hip_primitives.h"
#else
#include "cuda_primitives.h"
#endif

namespace splitrank::quick_reduce {

namespace gpu {

template <size_t Bytes>
struct WordOf;
template <>
struct WordOf<2> {
    using type = uint16_t;
};
template <>
struct WordOf<4> {
    using type = uint32_t;
};
template <>
struct WordOf<8> {
    using type = uint64_t;
};
template <>
struct WordOf<16> {
    using type = Vector16;
};

// Typed accesses: nvcc turns a memcpy of an encoded packet into single-byte stores.
template <class P>
struct Moved {
    static constexpr size_t kBytes = sizeof(P) < 16 ? sizeof(P) : 16;
    static_assert(sizeof(P) % kBytes == 0);
    static constexpr int kWords = int(sizeof(P) / kBytes);
    using Word = typename WordOf<kBytes>::type;
    Word word[kWords];
};

}  // namespace gpu

template <int LaneElements, int Unroll>
class GpuExecutor {
  public:
    static constexpr int kLaneElements = LaneElements;
    static constexpr int kWave = gpu::kWaveSize;
    static constexpr int kUnroll = Unroll;
    static_assert(kBlock % LaneElements == 0);

    QR_DEVICE uint32_t lane() const { return gpu::thread_index(); }
    QR_DEVICE uint32_t num_lanes() const { return gpu::num_threads(); }

    QR_DEVICE void release_block() {
        gpu::drain_stores();
        gpu::block_barrier();
    }
    QR_DEVICE bool all(bool ok) {
        ok = gpu::block_all(ok);
        gpu::acquire_block();
        return ok;
    }

    QR_DEVICE void store_flag(uint64_t* flag, uint64_t value) { gpu::store_release_system(flag, value); }

    // An acquire makes the whole multiprocessor forget its cached lines. Many polls in a row do that at the expense of the
    // other blocks there, up to a standstill: a flag that stays as it is is polled without.
    QR_DEVICE uint64_t load_flag(const uint64_t* flag) {
        if (repeats_ >= kEagerPolls && gpu::load_relaxed_system(flag) == last_seen_) return last_seen_;
        const uint64_t seen = gpu::load_acquire_system(flag);
        repeats_ = seen == last_seen_ ? repeats_ + 1 : 0;
        last_seen_ = seen;
        return seen;
    }
#ifdef QR_WHOLE_WORDS
    QR_DEVICE TaggedWord load_tagged(const TaggedWord* from) const {
        return bit_cast<TaggedWord>(gpu::load_whole_system(reinterpret_cast<const gpu::Vector16*>(from)));
    }
    QR_DEVICE void store_tagged(TaggedWord* to, const TaggedWord& word) const {
        gpu::store_whole_system(reinterpret_cast<gpu::Vector16*>(to), bit_cast<gpu::Vector16>(word));
    }
    QR_DEVICE void push_stores() const { gpu::fence_system(); }
    QR_DEVICE uint32_t group_lane() const { return lane() % (kBlock / LaneElements); }
    QR_DEVICE uint32_t group_get(uint32_t value, uint32_t of_lane) const {
        return gpu::shuffle_from(value, of_lane, int(kBlock) / LaneElements);
    }
#endif
    QR_DEVICE uint32_t exchange(uint32_t* word, uint32_t value) { return gpu::exchange_device(word, value); }
    QR_DEVICE bool claim(uint32_t* word, uint32_t value) { return gpu::claim_system(word, value); }
    QR_DEVICE uint32_t arrive(uint32_t* counter) { return gpu::arrive_device(counter); }
    QR_DEVICE void store_complete(uint32_t* word) { gpu::store_release_system(word, 1u); }

    QR_DEVICE uint64_t now_ns() const { return gpu::now_ns(); }
    QR_DEVICE void pause(uint32_t spins) const { gpu::pause(spins); }

    QR_DEVICE uint32_t group_max(uint32_t value) const {
        static_assert(kBlock / LaneElements <= 4, "at most 4 lanes share a scale");
        QR_UNROLL
        for (int mask = 1; mask < int(kBlock) / LaneElements; mask *= 2) {
            const uint32_t other = gpu::shuffle_xor(value, mask);
            value = value > other ? value : other;
        }
        return value;
    }

    template <class P>
    QR_DEVICE P load_input(const void* from) const {
        using Moved = gpu::Moved<P>;
        Moved moved;
        QR_UNROLL
        for (int i = 0; i < Moved::kWords; ++i)
            moved.word[i] = gpu::load_tensor(static_cast<const typename Moved::Word*>(from) + i);
        return bit_cast<P>(moved);
    }
    template <class P>
    QR_DEVICE void store_output(void* to, const P& packet) const {
        using Moved = gpu::Moved<P>;
        const Moved moved = bit_cast<Moved>(packet);
        QR_UNROLL
        for (int i = 0; i < Moved::kWords; ++i)
            gpu::store_tensor(static_cast<typename Moved::Word*>(to) + i, moved.word[i]);
    }
    template <class P>
    QR_DEVICE P load_exchange(const void* from) const {
        using Moved = gpu::Moved<P>;
        Moved moved;
        QR_UNROLL
        for (int i = 0; i < Moved::kWords; ++i)
            moved.word[i] = gpu::load_exchange(static_cast<const typename Moved::Word*>(from) + i);
        return bit_cast<P>(moved);
    }
    template <class P>
    QR_DEVICE void store_exchange(void* to, const P& packet) const {
        using Moved = gpu::Moved<P>;
        const Moved moved = bit_cast<Moved>(packet);
        QR_UNROLL
        for (int i = 0; i < Moved::kWords; ++i)
            gpu::store_exchange(static_cast<typename Moved::Word*>(to) + i, moved.word[i]);
    }

  private:
    static constexpr uint32_t kEagerPolls = 8;
    uint64_t last_seen_ = 0;
    uint32_t repeats_ = 0;
};

// The ticket and the uses are one word, so that one access takes the one and reads the other. SlotState::holder only
// says whose it is.
constexpr uint64_t kTicketTaken = uint64_t(1) << 63;

template <int LaneElements, int Unroll>
QR_DEVICE uint64_t ask_for_ticket(GpuExecutor<LaneElements, Unroll>&, SlotState& state, uint32_t) {
    return gpu::fetch_or_device(&state.sequence, kTicketTaken);
}
template <int LaneElements, int Unroll>
QR_DEVICE Taken take_ticket(GpuExecutor<LaneElements, Unroll>&, SlotState& state, uint32_t id, uint64_t before) {
    if ((before & kTicketTaken) == 0) {
        state.holder = id;
        return {0, before};
    }
    const uint32_t holder = state.holder;
    return {holder != 0 ? holder : 0xffffffffu, before & ~kTicketTaken};
}
template <int LaneElements, int Unroll>
QR_DEVICE void give_ticket(GpuExecutor<LaneElements, Unroll>&, SlotState& state, uint64_t uses) {
    gpu::store_device(&state.sequence, uses);
}
template <int LaneElements, int Unroll>
QR_DEVICE void tell_uses(GpuExecutor<LaneElements, Unroll>&, uint64_t uses) {
    gpu::shared_word() = uses;
}
template <int LaneElements, int Unroll>
QR_DEVICE uint64_t hear_uses(GpuExecutor<LaneElements, Unroll>&, const SlotState&) {
    return gpu::shared_word();
}

}  // namespace splitrank::quick_reduce
