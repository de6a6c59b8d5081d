// A tagged word: 14 bytes of a message and two that say whose use of the slot they belong to, stored and loaded in one
// access of 16 bytes.
//
// The tag is the low 16 bits of the slot's sequence number. Sixteen are enough because no word of a place is older than
// 2^16 uses: each use writes one word more than it needs to, another one each time (refreshed_word). That the whole call
// is the right one a header of 64 bits says, which travels with every use (handshake.h).
#pragma once

#include "portability.h"

namespace splitrank::quick_reduce {

struct alignas(16) TaggedWord {
    uint32_t part[4];  // the upper half of the last is the tag
};

constexpr int kTagBits = 16;
// A place has one header and at most so many words beside it: each is written in as many uses of its parity.
constexpr uint32_t kMaxPlaceWords = (1u << (kTagBits - 1)) - 1;

QR_FN uint32_t tag_of(uint64_t sequence) { return uint32_t(sequence) & ((1u << kTagBits) - 1); }
QR_FN bool has_tag(const TaggedWord& word, uint32_t tag) { return word.part[3] >> (32 - kTagBits) == tag; }

// Which word of a place with `num_words`, its header aside, a use writes in any case. Uses of one parity share a place.
QR_FN uint32_t refreshed_word(uint64_t sequence, uint32_t num_words) { return uint32_t((sequence >> 1) % num_words); }

// How many words carry `num_values` of 32 bits.
constexpr int words_for(int num_values) { return (2 * num_values + 6) / 7; }

// Three values a word; what is left over in halves, in the fourth parts.
template <int D, int N>
QR_FN void pack_words(const uint32_t (&values)[D], uint32_t tag, TaggedWord (&words)[N]) {
    static_assert(N == words_for(D));
    QR_UNROLL
    for (int n = 0; n < N; ++n) {
        QR_UNROLL
        for (int i = 0; i < 3; ++i) words[n].part[i] = 3 * n + i < D ? values[3 * n + i < D ? 3 * n + i : 0] : 0;
        const int split = 3 * N + n / 2;
        const uint32_t half = split < D ? values[split < D ? split : 0] >> (n % 2 * 16) & 0xffff : 0;
        words[n].part[3] = tag << (32 - kTagBits) | half;
    }
}

template <int D, int N>
QR_FN void unpack_words(const TaggedWord (&words)[N], uint32_t (&values)[D]) {
    static_assert(N == words_for(D));
    QR_UNROLL
    for (int d = 0; d < D; ++d) {
        const int first = d < 3 * N ? 0 : 2 * (d - 3 * N);
        values[d] = d < 3 * N ? words[d < 3 * N ? d / 3 : 0].part[d % 3]
                              : (words[first].part[3] & 0xffff) | words[first + 1 < N ? first + 1 : 0].part[3] << 16;
    }
}

// What one lane moves at once.
template <class Codec, int K>
struct TaggedUnit {
    static constexpr int kElements = Codec::template unit_elements<K>();
    static constexpr int kPackets = kElements / K;
    static constexpr int kValues = Codec::template unit_values<K>();  // of 32 bits
    static constexpr int kWords = words_for(kValues);

    // Elements that a place of so many rows holds, each as wide as a wave.
    static constexpr uint64_t capacity(uint32_t num_rows, int wave) {
        return uint64_t((num_rows - 1) / kWords) * uint64_t(kElements * wave);
    }
};

constexpr int kTaggedWave = 32;  // where they are offered: NVIDIA's

}  // namespace splitrank::quick_reduce
