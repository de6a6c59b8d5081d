// What the integer codecs share: symmetric quantisation of blocks of 32 elements with one bfloat16 scale.
//
//   amax = largest magnitude of the block, rounded to bfloat16        (what travels)
//   q    = round_to_even(x * (Q / amax))                              Q = 127, 31, 7
//   x'   = q * (amax * (1 / Q))
//
// |q| <= Q without a clamp: rounded down to bfloat16, amax is at most 2^-8 too small, and Q (1 + 2^-8) rounds to Q.
// |x' - x| <= amax * (1 / (2 Q) + 2^-8): half a step, and the largest element when the scale was rounded down. A block
// whose amax is below 2^-100 becomes zeros; one with an infinity or a NaN is NaN afterwards.
// Ones, and their sums over 2, 4 and 8 ranks, come through exactly.
#pragma once

#include "packet.h"

namespace splitrank::quick_reduce {

// Integers of `Bits` bits for K elements, in planes: low nibbles first, then pairs of bits, or whole bytes. The planes of
// P such packets together fill words of 32 bits.
template <int Bits, int K>
struct Quants;

// add(i, bits): of a float 1.5 * 2^23 + q, once for each i. float_bits(i): of 2^23 + q * weight(i).
constexpr uint32_t kRounderBits = 0x4b400000, kTwo23 = 0x4b000000;

template <int K>
struct Quants<8, K> {
    Words<uint32_t, K / 4> bytes{};
    QR_FN void add(int i, uint32_t bits) { bytes.word[i / 4] |= (bits & 0xff) << (8 * (i % 4)); }
    QR_FN uint32_t float_bits(int i) const { return (bytes.word[i / 4] >> (8 * (i % 4)) & 0xff) | kTwo23; }
    static QR_FN constexpr int weight(int) { return 1; }
    template <int P, int D>
    QR_FN void to_planes(int packet, uint32_t (&planes)[D]) const {
        put_words(bytes, packet, planes);
    }
    template <int P, int D>
    QR_FN void from_planes(int packet, const uint32_t (&planes)[D]) {
        bytes = get_words<K / 4>(packet, planes);
    }
};

template <int K>
struct Quants<4, K> {
    Words<uint32_t, K / 8> nibbles{};
    // One shifted addition: what the rounder leaves above the nibbles is taken off with the first of eight.
    QR_FN void add(int i, uint32_t bits) {
        constexpr uint32_t kRests = kRounderBits * 0x11111111u;
        nibbles.word[i / 8] += (bits << (4 * (i % 8))) - (i % 8 == 0 ? kRests : 0);
    }
    // Where it lies in its half of a word: no shift.
    QR_FN uint32_t float_bits(int i) const {
        return and_or(nibbles.word[i / 8] >> (i % 8 / 4 * 16), 0xfu << (i % 4 * 4), kTwo23);
    }
    static QR_FN constexpr int weight(int i) { return 1 << (i % 4 * 4); }
    template <int P, int D>
    QR_FN void to_planes(int packet, uint32_t (&planes)[D]) const {
        put_words(nibbles, packet, planes);
    }
    template <int P, int D>
    QR_FN void from_planes(int packet, const uint32_t (&planes)[D]) {
        nibbles = get_words<K / 8>(packet, planes);
    }
};

template <int K>
struct Quants<6, K> {
    Words<uint32_t, K / 8> nibbles{};
    Words<uint16_t, K / 8> pairs{};
    QR_FN void add(int i, uint32_t bits) {
        nibbles.word[i / 8] |= (bits & 0xf) << (4 * (i % 8));
        pairs.word[i / 8] |= uint16_t((bits >> 4 & 3) << (2 * (i % 8)));
    }
    static QR_FN constexpr int weight(int) { return 1; }
    QR_FN uint32_t float_bits(int i) const {
        return kTwo23 | (nibbles.word[i / 8] >> (4 * (i % 8)) & 0xf) | uint32_t(pairs.word[i / 8] >> (2 * (i % 8)) & 3) << 4;
    }
    template <int P, int D>
    QR_FN void to_planes(int packet, uint32_t (&planes)[D]) const {
        put_words(nibbles, packet, planes);
        QR_UNROLL
        for (int i = 0; i < K / 8; ++i) {
            const int at = packet * (K / 8) + i;
            uint32_t& two_pairs = planes[P * (K / 8) + at / 2];
            two_pairs = at % 2 == 0 ? pairs.word[i] : two_pairs | uint32_t(pairs.word[i]) << 16;
        }
    }
    template <int P, int D>
    QR_FN void from_planes(int packet, const uint32_t (&planes)[D]) {
        nibbles = get_words<K / 8>(packet, planes);
        QR_UNROLL
        for (int i = 0; i < K / 8; ++i) {
            const int at = packet * (K / 8) + i;
            pairs.word[i] = uint16_t(planes[P * (K / 8) + at / 2] >> (at % 2 * 16));
        }
    }
};

template <class Type, int Bits, CodecKind Kind>
struct CodecQuantised {
    static constexpr CodecKind kKind = Kind;
    static constexpr int kMax = (1 << (Bits - 1)) - 1;    // Q
    static constexpr uint32_t kBias = 1u << (Bits - 1);   // makes q unsigned
    static constexpr uint64_t kBlockBytes = kBlock * Bits / 8 + 2;

    template <int K>
    struct Encoded {
        Quants<Bits, K> quants;
        uint16_t amax;  // bfloat16
    };

    static QR_FN uint64_t capacity(uint64_t segment_bytes) { return segment_bytes / kBlockBytes * kBlock / 512 * 512; }

    template <int K, class Exec>
    static QR_DEVICE Encoded<K> encode_raw(Exec& exec, const RawPacket<Type, K>& raw) {
        float values[K];
        unpack<Type, K>(raw, values);
        return encode<K>(exec, values);
    }

    template <int K, class Exec>
    static QR_DEVICE Encoded<K> encode(Exec& exec, const float (&values)[K]) {
        uint32_t largest = 0;  // of the magnitudes' bits: ordered like the magnitudes, and NaN above all
        QR_UNROLL
        for (int i = 0; i < K; ++i) {
            const uint32_t magnitude = bit_cast<uint32_t>(values[i]) & 0x7fffffff;
            largest = magnitude > largest ? magnitude : largest;
        }
        largest = exec.group_max(largest);
        Encoded<K> encoded;
        encoded.amax = Bfloat16::from_float(bit_cast<float>(largest));
        if (encoded.amax >= 0x7f80) encoded.amax = 0x7fff;
        const float amax = Bfloat16::to_float(encoded.amax);
        const bool tiny = amax < kTiny;
        if (tiny) encoded.amax = 0;
        const float inverse = tiny ? 0.0f : float(kMax) / amax;
        QR_UNROLL
        for (int i = 0; i < K; ++i) {
            // Adding 1.5 * 2^23 leaves the nearest integer, ties to even, in the low bits; the bias is even.
            encoded.quants.add(i, bit_cast<uint32_t>(values[i] * inverse + (kRounder + float(kBias))));
        }
        return encoded;
    }

    template <int K>
    static QR_DEVICE void decode(const Encoded<K>& encoded, float (&values)[K]) {
        const float step = Bfloat16::to_float(encoded.amax) * (1.0f / float(kMax));
        QR_UNROLL
        for (int i = 0; i < K; ++i) {
            // 2^23 + q * weight exactly, cheaper than a conversion; weights are powers of two: they change no bit of a product.
            const auto weight = float(encoded.quants.weight(i));
            const float weighted = bit_cast<float>(encoded.quants.float_bits(i)) - (8388608.0f + float(kBias) * weight);
            values[i] = weighted * (step * (1.0f / weight));
        }
    }

    template <int K>
    static QR_DEVICE RawPacket<Type, K> decode_raw(const Encoded<K>& encoded) {
        float values[K];
        decode<K>(encoded, values);
        return pack<Type, K>(values);
    }

    template <int K, class Exec>
    static QR_DEVICE Encoded<K> load(Exec& exec, const std::byte* segment, uint64_t capacity, uint64_t packet) {
        Encoded<K> encoded;
        if constexpr (Bits == 8) {
            encoded.quants.bytes = exec.template load_exchange<Words<uint32_t, K / 4>>(segment + packet * K);
        } else {
            encoded.quants.nibbles = exec.template load_exchange<Words<uint32_t, K / 8>>(segment + packet * (K / 2));
            if constexpr (Bits == 6)
                encoded.quants.pairs =
                    exec.template load_exchange<Words<uint16_t, K / 8>>(segment + capacity / 2 + packet * (K / 4));
        }
        encoded.amax = exec.template load_exchange<Words<uint16_t, 1>>(scale(segment, capacity, packet * K)).word[0];
        return encoded;
    }

    template <int K, class Exec>
    static QR_DEVICE void store(Exec& exec, std::byte* segment, uint64_t capacity, uint64_t packet,
                                const Encoded<K>& encoded) {
        if constexpr (Bits == 8) {
            exec.store_exchange(segment + packet * K, encoded.quants.bytes);
        } else {
            exec.store_exchange(segment + packet * (K / 2), encoded.quants.nibbles);
            if constexpr (Bits == 6)
                exec.store_exchange(segment + capacity / 2 + packet * (K / 4), encoded.quants.pairs);
        }
        if (packet * K % kBlock == 0)  // the first of the lanes that share it
            exec.store_exchange(const_cast<std::byte*>(scale(segment, capacity, packet * K)),
                                Words<uint16_t, 1>{{encoded.amax}});
    }

    // A lane's unit of tagged words: the integers of its 64 elements in planes, and two scales. Lanes that share scales
    // send every scale once: of packet p, the lane whose number among them is p modulo their number.
    template <int K>
    static constexpr int unit_elements() {
        return 2 * int(kBlock);
    }
    template <int K>
    static constexpr int unit_values() {
        return unit_elements<K>() * Bits / 32 + 1;
    }
    template <int K, class Exec, int P, int D>
    static QR_DEVICE void pack_unit(Exec& exec, const Encoded<K> (&packets)[P], uint32_t (&values)[D]) {
        QR_UNROLL
        for (int packet = 0; packet < P; ++packet) packets[packet].quants.template to_planes<P>(packet, values);
        constexpr int kSharing = int(kBlock) / K;
        values[D - 1] = 0;
        QR_UNROLL
        for (int round = 0; round < 2; ++round) {
            QR_UNROLL
            for (int lane = 0; lane < kSharing; ++lane) {
                // A mask and no condition, which nvcc makes an index of, and packets an array in memory.
                const uint32_t is_mine = 0u - uint32_t(exec.group_lane() == uint32_t(lane));
                values[D - 1] |= (packets[round * kSharing + lane].amax & is_mine) << (16 * round);
            }
        }
    }
    template <int K, class Exec, int P, int D>
    static QR_DEVICE void unpack_unit(Exec& exec, const uint32_t (&values)[D], Encoded<K> (&packets)[P]) {
        constexpr int kSharing = int(kBlock) / K;
        uint32_t scales[kSharing];
        QR_UNROLL
        for (int lane = 0; lane < kSharing; ++lane) scales[lane] = exec.group_get(values[D - 1], uint32_t(lane));
        QR_UNROLL
        for (int packet = 0; packet < P; ++packet) {
            packets[packet].quants.template from_planes<P>(packet, values);
            packets[packet].amax = uint16_t(scales[packet % kSharing] >> (16 * (packet / kSharing)));
        }
    }

  private:
    static constexpr float kRounder = 12582912.0f;
    static constexpr float kTiny = 7.888609052210118e-31f;  // 2^-100: below, Q / amax could overflow

    static QR_FN const std::byte* scale(const std::byte* segment, uint64_t capacity, uint64_t element) {
        return segment + capacity * Bits / 8 + element / kBlock * 2;
    }
};

}  // namespace splitrank::quick_reduce
