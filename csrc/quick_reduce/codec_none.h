// Full precision: elements travel as they are. Exact; sums are rounded once, to the element type.
#pragma once

#include "packet.h"

namespace splitrank::quick_reduce {

template <class Type>
struct CodecNone {
    static constexpr CodecKind kKind = CodecKind::kNone;
    template <int K>
    using Encoded = RawPacket<Type, K>;

    // Elements that a segment of so many bytes holds.
    static QR_FN uint64_t capacity(uint64_t segment_bytes) { return segment_bytes / sizeof(typename Type::Storage); }

    template <int K, class Exec>
    static QR_DEVICE Encoded<K> encode_raw(Exec&, const RawPacket<Type, K>& raw) {
        return raw;
    }
    template <int K, class Exec>
    static QR_DEVICE Encoded<K> encode(Exec&, const float (&values)[K]) {
        return pack<Type, K>(values);
    }
    template <int K>
    static QR_DEVICE void decode(const Encoded<K>& encoded, float (&values)[K]) {
        unpack<Type, K>(encoded, values);
    }
    template <int K>
    static QR_DEVICE RawPacket<Type, K> decode_raw(const Encoded<K>& encoded) {
        return encoded;
    }

    template <int K, class Exec>
    static QR_DEVICE Encoded<K> load(Exec& exec, const std::byte* segment, uint64_t /*capacity*/, uint64_t packet) {
        return exec.template load_exchange<Encoded<K>>(segment + packet * sizeof(Encoded<K>));
    }
    template <int K, class Exec>
    static QR_DEVICE void store(Exec& exec, std::byte* segment, uint64_t /*capacity*/, uint64_t packet,
                                const Encoded<K>& encoded) {
        exec.store_exchange(segment + packet * sizeof(Encoded<K>), encoded);
    }

    // A lane's unit of tagged words: 64 bytes, or one packet if that is longer.
    template <int K>
    static constexpr int unit_elements() {
        return K * int(sizeof(typename Type::Storage)) > 64 ? K : 64 / int(sizeof(typename Type::Storage));
    }
    template <int K>
    static constexpr int unit_values() {
        return unit_elements<K>() * int(sizeof(typename Type::Storage)) / 4;
    }
    template <int K, class Exec, int P, int D>
    static QR_DEVICE void pack_unit(Exec&, const Encoded<K> (&packets)[P], uint32_t (&values)[D]) {
        constexpr int kEach = D / P;
        QR_UNROLL
        for (int packet = 0; packet < P; ++packet)
            put_words(bit_cast<Words<uint32_t, kEach>>(packets[packet]), packet, values);
    }
    template <int K, class Exec, int P, int D>
    static QR_DEVICE void unpack_unit(Exec&, const uint32_t (&values)[D], Encoded<K> (&packets)[P]) {
        constexpr int kEach = D / P;
        QR_UNROLL
        for (int packet = 0; packet < P; ++packet)
            packets[packet] = bit_cast<Encoded<K>>(get_words<kEach>(packet, values));
    }
};

}  // namespace splitrank::quick_reduce
