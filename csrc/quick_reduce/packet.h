// Packets: what one lane moves at once, kLaneElements (K) neighbouring elements; and the three element types.
#pragma once

#include "call.h"

namespace splitrank::quick_reduce {

struct Float32 {
    using Storage = uint32_t;
    static constexpr DType kDType = DType::kFloat32;
    static constexpr bool kPacksPairs = false;
    static QR_FN float to_float(uint32_t bits) { return bit_cast<float>(bits); }
    static QR_FN uint32_t from_float(float value) { return bit_cast<uint32_t>(value); }
};

struct Bfloat16 {
    using Storage = uint16_t;
    static constexpr DType kDType = DType::kBfloat16;
    static QR_FN float to_float(uint16_t bits) { return bit_cast<float>(uint32_t(bits) << 16); }
    // Round to nearest even, in integers. Every NaN becomes the one that NVIDIA's conversion gives.
    static QR_FN uint16_t from_float(float value) {
        const uint32_t bits = bit_cast<uint32_t>(value);
        const uint32_t rounded = (bits + 0x7fff + (bits >> 16 & 1)) >> 16;
        return uint16_t((bits & 0x7fffffff) > 0x7f800000 ? 0x7fff : rounded);
    }
#if defined(__CUDA_ARCH__)
    // The same bits of two in one instruction, instead of ten for each.
    static constexpr bool kPacksPairs = true;
    static __device__ uint32_t from_floats(float low, float high) {
        uint32_t both;
        asm("cvt.rn.bf16x2.f32 %0, %1, %2;" : "=r"(both) : "f"(high), "f"(low));
        return both;
    }
#else
    static constexpr bool kPacksPairs = false;
#endif
};

struct Float16 {
    using Storage = uint16_t;
    static constexpr DType kDType = DType::kFloat16;
    static constexpr bool kPacksPairs = false;
    // Exact: the exponent moves by multiplication with a power of two, which also makes subnormals right.
    static QR_FN float to_float(uint16_t half) {
        const uint32_t magnitude = uint32_t(half & 0x7fff) << 13;
        const float moved = bit_cast<float>(magnitude) * bit_cast<float>(uint32_t(0x77800000));  // 2^112
        const uint32_t special = bit_cast<uint32_t>(moved) | 0x7f800000;                         // infinity or NaN
        const uint32_t bits = magnitude >= 0x0f800000 ? special : bit_cast<uint32_t>(moved);
        return bit_cast<float>(bits | uint32_t(half & 0x8000) << 16);
    }
    // Round to nearest even; beyond 65504 infinity, as IEEE says and as torch does. NaN stays NaN.
    static QR_FN uint16_t from_float(float value) {
        const uint32_t bits = bit_cast<uint32_t>(value);
        const uint32_t magnitude = bits & 0x7fffffff;
        const uint32_t normal = (magnitude - 0x38000000 + 0xfff + (magnitude >> 13 & 1)) >> 13;
        // Below 2^-14 an addition to 0.5 rounds at the right place: the sum's last bit is worth 2^-24.
        const uint32_t subnormal = bit_cast<uint32_t>(bit_cast<float>(magnitude) + 0.5f) - 0x3f000000;
        const uint32_t nan = 0x7e00;
        uint32_t half = magnitude < 0x38800000 ? subnormal : normal;
        half = magnitude >= 0x47800000 ? 0x7c00 : half;
        half = magnitude > 0x7f800000 ? nan : half;
        return uint16_t(half | (bits >> 16 & 0x8000));
    }
};

// N words of 4, 2 or 1 bytes, moved as one.
template <class Word, int N>
struct alignas(sizeof(Word) * N >= 16 ? 16 : sizeof(Word) * N) Words {
    Word word[N];
};

// The words of one packet among those of several, which lie one after the other.
template <int N, int D>
QR_FN void put_words(const Words<uint32_t, N>& words, int packet, uint32_t (&all)[D]) {
    QR_UNROLL
    for (int i = 0; i < N; ++i) all[packet * N + i] = words.word[i];
}
template <int N, int D>
QR_FN Words<uint32_t, N> get_words(int packet, const uint32_t (&all)[D]) {
    Words<uint32_t, N> words;
    QR_UNROLL
    for (int i = 0; i < N; ++i) words.word[i] = all[packet * N + i];
    return words;
}

// K elements as they lie in the input and in the output.
template <class Type, int K>
using RawPacket = Words<typename Type::Storage, K>;

template <class Type, int K>
QR_FN void unpack(const RawPacket<Type, K>& raw, float (&values)[K]) {
    QR_UNROLL
    for (int i = 0; i < K; ++i) values[i] = Type::to_float(raw.word[i]);
}

template <class Type, int K>
QR_FN RawPacket<Type, K> pack(const float (&values)[K]) {
    if constexpr (Type::kPacksPairs && K % 2 == 0) {
        Words<uint32_t, K / 2> pairs;
        QR_UNROLL
        for (int i = 0; i < K / 2; ++i) pairs.word[i] = Type::from_floats(values[2 * i], values[2 * i + 1]);
        return bit_cast<RawPacket<Type, K>>(pairs);
    } else {
        RawPacket<Type, K> raw;
        QR_UNROLL
        for (int i = 0; i < K; ++i) raw.word[i] = Type::from_float(values[i]);
        return raw;
    }
}

// Elements [first, first + K) of a tensor whose segment ends after `valid` of them; zeros behind the end.
template <class Type, int K, class Exec>
QR_DEVICE RawPacket<Type, K> load_input(Exec& exec, const void* tensor, uint64_t first, uint64_t valid) {
    using Storage = typename Type::Storage;
    const Storage* from = static_cast<const Storage*>(tensor) + first;
    if (valid >= K) return exec.template load_input<RawPacket<Type, K>>(from);
    // In words of 32 bits, as the whole packet comes: where the two meet, nothing is taken apart.
    constexpr int kPerWord = 4 / int(sizeof(Storage));
    Words<uint32_t, K / kPerWord> words{};
    QR_UNROLL
    for (int i = 0; i < K; ++i)
        if (uint64_t(i) < valid) words.word[i / kPerWord] |= uint32_t(from[i]) << (i % kPerWord * 16);
    return bit_cast<RawPacket<Type, K>>(words);
}

template <class Type, int K, class Exec>
QR_DEVICE void store_output(Exec& exec, void* tensor, uint64_t first, uint64_t valid, const RawPacket<Type, K>& raw) {
    using Storage = typename Type::Storage;
    Storage* to = static_cast<Storage*>(tensor) + first;
    if (valid >= K) return exec.store_output(to, raw);
    QR_UNROLL
    for (int i = 0; i < K; ++i)
        if (uint64_t(i) < valid) to[i] = raw.word[i];
}

// Says at compile time that a packet lies wholly in its segment; else what is left must be counted.
template <bool Is>
struct Whole {
    static constexpr bool value = Is;
};

// What is left of a segment of `count` elements from packet `packet` on.
template <int K, bool Is>
QR_FN uint64_t valid_elements(uint64_t count, uint64_t packet, Whole<Is>) {
    if (Is) return K;
    return count > packet * K ? count - packet * K : 0;
}

// Sum over ranks along one fixed binary tree, ((0+1)+(2+3))+((4+5)+(6+7)), in float32: the same bits on every rank.
template <int W, int K>
QR_FN void sum_ranks(float (&values)[W][K]) {
    QR_UNROLL
    for (int stride = 1; stride < W; stride *= 2)
        QR_UNROLL
        for (int rank = 0; rank + stride < W; rank += 2 * stride)
            QR_UNROLL
            for (int i = 0; i < K; ++i) values[rank][i] += values[rank + stride][i];
}

// Which rank is `step` away, and where its values belong for sum_ranks. For powers of two both by exclusive or: the tree
// of the distances is then the tree of the ranks with some pairs swapped, which changes no bit of a sum; and values of a
// GPU lane are indexed by constants only.
template <int W>
QR_FN uint32_t peer_at(uint32_t rank, uint32_t step) {
    return (W & (W - 1)) == 0 ? rank ^ step : (rank + step) % W;
}
template <int W>
QR_FN uint32_t tree_place(uint32_t rank, uint32_t step) {
    return (W & (W - 1)) == 0 ? step : peer_at<W>(rank, step);
}

// A lane's packets of a segment, in groups whose loads go ahead of their uses.
//
// All lanes of a wave run equally often, because lanes that share a scale meet in `use`: whether a group lies wholly in
// the segment is asked for the wave's last lane. `load` and `use` see packets behind the end, and treat them as empty.
template <class Exec, class Load, class Use>
class PacketLoop {
  public:
    QR_DEVICE PacketLoop(Exec& exec, uint64_t count, Load& load, Use& use)
        : count_(count), stride_(exec.num_lanes()), packet_(exec.lane()), load_(load), use_(use) {}

    QR_DEVICE void run() {
        while (group<Exec::kUnroll>()) {}
        if (Exec::kUnroll > 2) group<2>();
        const uint64_t bound = round_up(divide_up(count_, Exec::kLaneElements), Exec::kWave);
        for (; packet_ < bound; packet_ += stride_) use_(packet_, load_(packet_, Whole<false>()), Whole<false>());
    }

  private:
    template <int N>
    QR_DEVICE bool group() {
        using Loaded = decltype(load_(packet_, Whole<true>()));
        const uint64_t last = (packet_ | (Exec::kWave - 1)) + (N - 1) * stride_;
        if ((last + 1) * Exec::kLaneElements > count_) return false;
        Loaded loaded[N];
        QR_UNROLL
        for (int i = 0; i < N; ++i) loaded[i] = load_(packet_ + i * stride_, Whole<true>());
        QR_UNROLL
        for (int i = 0; i < N; ++i) use_(packet_ + i * stride_, loaded[i], Whole<true>());
        packet_ += N * stride_;
        return true;
    }

    const uint64_t count_;
    const uint64_t stride_;
    uint64_t packet_;
    Load& load_;
    Use& use_;
};

// Runs `use(packet, load(packet, whole), whole)` for this lane's packets of a segment of `count` elements.
template <class Exec, class Load, class Use>
QR_DEVICE void for_packets(Exec& exec, uint64_t count, Load&& load, Use&& use) {
    PacketLoop<Exec, Load, Use>(exec, count, load, use).run();
}

}  // namespace splitrank::quick_reduce
