// What a call must give, said once more and plainly: every contribution coded, summed over ranks along the tree; and
// coded again where sums travel, which they do in two-shot.
#pragma once

#include <cstring>

#include "quick_reduce/packet.h"

namespace interleaving {

struct ScalesOfOneLane {
    uint32_t group_max(uint32_t value) const { return value; }
};

// ((0+1)+(2+3))+...
inline float tree_sum(const float* of_rank, uint32_t begin, uint32_t end) {
    if (end - begin == 1) return of_rank[begin];
    uint32_t half = 1;
    while (half * 2 < end - begin) half *= 2;
    return tree_sum(of_rank, begin, begin + half) + tree_sum(of_rank, begin + half, end);
}

template <class Type, class Codec, class CodecOfSums = Codec>
void reference(const void* const* inputs, uint32_t world_size, uint64_t num_elements, void* output) {
    constexpr int K = int(splitrank::quick_reduce::kBlock);
    using Raw = splitrank::quick_reduce::RawPacket<Type, K>;
    ScalesOfOneLane exec;
    for (uint64_t first = 0; first < num_elements; first += K) {
        const size_t num_bytes = sizeof(typename Type::Storage) * std::min<uint64_t>(K, num_elements - first);
        const size_t offset = sizeof(typename Type::Storage) * first;
        float coded[splitrank::quick_reduce::kMaxWorldSize][K], sum[K];
        for (uint32_t rank = 0; rank < world_size; ++rank) {
            Raw raw{};
            std::memcpy(&raw, static_cast<const char*>(inputs[rank]) + offset, num_bytes);
            Codec::template decode<K>(Codec::template encode_raw<K>(exec, raw), coded[rank]);
        }
        for (int i = 0; i < K; ++i) {
            float of_rank[splitrank::quick_reduce::kMaxWorldSize];
            for (uint32_t rank = 0; rank < world_size; ++rank) of_rank[rank] = coded[rank][i];
            sum[i] = tree_sum(of_rank, 0, world_size);
        }
        const Raw result = CodecOfSums::template decode_raw<K>(CodecOfSums::template encode<K>(exec, sum));
        std::memcpy(static_cast<char*>(output) + offset, &result, num_bytes);
    }
}

}  // namespace interleaving
