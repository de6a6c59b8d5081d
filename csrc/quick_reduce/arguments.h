// Host side only: what every communicator checks of its caller's arguments, in the same words on all targets.
#pragma once

#include <stdexcept>
#include <string>

#include "codec_int4.h"
#include "codec_int6.h"
#include "codec_int8.h"
#include "codec_none.h"
#include "tagged_word.h"

namespace splitrank::quick_reduce {

constexpr uint64_t kAlignment = 16;  // of tensors
constexpr uint64_t kSegmentAlignment = 128;
constexpr uint64_t kMinSegmentBytes = 1024;  // every codec gets at least one of its 512 elements
constexpr uint64_t kMaxSegmentBytes = 1u << 30;

inline std::string text(uint64_t number) { return std::to_string(number); }

// Throws std::invalid_argument with the number that is wrong, as all of these do.
inline void check_shape(uint32_t rank, uint32_t world_size, uint32_t num_slots, uint32_t max_slots,
                        uint64_t segment_bytes) {
    if (world_size != 1 && world_size != 2 && world_size != 4 && world_size != 8)
        throw std::invalid_argument("world size " + text(world_size) + ": it must be 1, 2, 4 or 8");
    if (rank >= world_size) throw std::invalid_argument("rank " + text(rank) + " of " + text(world_size));
    if (num_slots < 1 || num_slots > max_slots)
        throw std::invalid_argument(text(num_slots) + " slots: between 1 and " + text(max_slots) + " are possible");
    if (segment_bytes % kSegmentAlignment != 0 || segment_bytes < kMinSegmentBytes || segment_bytes > kMaxSegmentBytes)
        throw std::invalid_argument("segments of " + text(segment_bytes) + " bytes: it must be a multiple of " +
                                    text(kSegmentAlignment) + " between " + text(kMinSegmentBytes) + " and " +
                                    text(kMaxSegmentBytes));
}

// Addresses of a message of `num_bytes`; the output may be the input, but not a part of it.
inline void check_tensors(uint64_t input, uint64_t output, uint64_t num_bytes) {
    if (input == 0 || output == 0) throw std::invalid_argument("a null pointer to " + text(num_bytes) + " bytes");
    if (input % kAlignment != 0 || output % kAlignment != 0)
        throw std::invalid_argument("tensors must be aligned to " + text(kAlignment) + " bytes: the input starts " +
                                    text(input % kAlignment) + " and the output " + text(output % kAlignment) +
                                    " bytes behind");
    const uint64_t distance = input < output ? output - input : input - output;
    if (distance != 0 && distance < num_bytes)
        throw std::invalid_argument("input and output overlap: " + text(distance) + " bytes apart, " + text(num_bytes) +
                                    " bytes long");
}

// Which algorithms have codecs. Between two ranks one-shot and tagged send as many bytes as two-shot.
inline void check_codec(CodecKind codec, Algorithm algorithm, uint32_t world_size) {
    if (codec == CodecKind::kNone || algorithm == Algorithm::kTwoShot) return;
    if (algorithm == Algorithm::kRegistered)
        throw std::invalid_argument("the registered algorithm has no codecs, not codec code " + text(uint32_t(codec)));
    if (world_size > 2)
        throw std::invalid_argument("only two-shot has codecs among " + text(world_size) +
                                    " ranks, one-shot and tagged between two alone; not algorithm code " +
                                    text(uint32_t(algorithm)) + " with codec code " + text(uint32_t(codec)));
}

// Elements that a segment of so many bytes holds.
inline uint64_t segment_capacity(CodecKind codec, DType dtype, uint64_t segment_bytes) {
    switch (codec) {
        case CodecKind::kInt8: return CodecInt8<Float32>::capacity(segment_bytes);
        case CodecKind::kInt6: return CodecInt6<Float32>::capacity(segment_bytes);
        case CodecKind::kInt4: return CodecInt4<Float32>::capacity(segment_bytes);
        case CodecKind::kNone: break;
    }
    return segment_bytes / element_bytes(dtype);
}

// Elements that a place of so many rows of tagged words holds.
inline uint64_t tagged_capacity(CodecKind codec, DType dtype, uint32_t num_rows) {
    switch (codec) {
        case CodecKind::kInt8: return TaggedUnit<CodecInt8<Float32>, 16>::capacity(num_rows, kTaggedWave);
        case CodecKind::kInt6: return TaggedUnit<CodecInt6<Float32>, 16>::capacity(num_rows, kTaggedWave);
        case CodecKind::kInt4: return TaggedUnit<CodecInt4<Float32>, 16>::capacity(num_rows, kTaggedWave);
        case CodecKind::kNone: break;
    }
    return dtype == DType::kFloat32 ? TaggedUnit<CodecNone<Float32>, 4>::capacity(num_rows, kTaggedWave)
                                    : TaggedUnit<CodecNone<Bfloat16>, 8>::capacity(num_rows, kTaggedWave);
}

}  // namespace splitrank::quick_reduce
