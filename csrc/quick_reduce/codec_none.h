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
};

}  // namespace splitrank::quick_reduce
