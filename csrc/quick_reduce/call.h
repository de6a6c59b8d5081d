// A call: what all ranks must agree on, how it is cut into tiles, and the fingerprint that travels beside every flag.
#pragma once

#include "portability.h"

namespace splitrank::quick_reduce {

enum class DType : uint32_t { kFloat32 = 0, kBfloat16 = 1, kFloat16 = 2 };
enum class CodecKind : uint32_t { kNone = 0, kInt8 = 1, kInt6 = 2, kInt4 = 3 };
enum class Algorithm : uint32_t { kOneShot = 0, kTwoShot = 1, kRegistered = 2, kTagged = 3 };

constexpr uint64_t kBlock = 32;  // elements that share one scale; every segment starts at a multiple of it

QR_FN uint64_t element_bytes(DType dtype) { return dtype == DType::kFloat32 ? 4 : 2; }

// One rank's view of a call. Passed by value to the kernel.
//
// A tile is what one slot does in one handshake. Two-shot: `world_size` segments of at most `segment_elements`, one to
// be summed by each rank. All others: one segment, summed by everybody. Slot s does tiles s, s + num_slots, ...
struct Call {
    const void* input;
    void* output;  // may be the input
    uint64_t num_elements;
    uint64_t segment_elements;
    uint64_t num_tiles;
    uint32_t num_slots;
    uint32_t id;           // number of this call on this communicator (when captured: of the capture), never 0
    uint32_t fingerprint;  // 24 bits, of all that ranks must agree on; see fingerprint()
    uint64_t timeout_ns;   // of each wait
};

struct Segment {
    uint64_t begin;  // element
    uint64_t count;  // may be 0 in the last tile
};

// Elements of `tile` that rank `owner` sums. The last tile is shared evenly, so that no rank idles.
QR_FN Segment two_shot_segment(const Call& call, uint64_t world_size, uint64_t tile, uint64_t owner) {
    const uint64_t tile_begin = tile * call.segment_elements * world_size;
    const uint64_t left = call.num_elements - tile_begin;
    const uint64_t share = smaller(call.segment_elements, round_up(divide_up(left, world_size), kBlock));
    const uint64_t offset = smaller(owner * share, left);
    return {tile_begin + offset, smaller(share, left - offset)};
}

QR_FN Segment one_shot_segment(const Call& call, uint64_t tile) {
    const uint64_t begin = tile * call.segment_elements;
    return {begin, smaller(call.segment_elements, call.num_elements - begin)};
}

// FNV-1a over the call's contract. Equal on all ranks, or the first flag tells.
QR_FN uint32_t fingerprint(const Call& call, DType dtype, CodecKind codec, Algorithm algorithm) {
    const uint64_t words[] = {call.id,        call.num_elements,      call.segment_elements,      call.num_tiles,
                              call.num_slots, uint64_t(dtype) << 16 | uint64_t(codec) << 8 | uint64_t(algorithm)};
    uint32_t hash = 2166136261u;
    for (uint64_t word : words)
        for (int byte = 0; byte < 8; ++byte) hash = (hash ^ uint32_t(word >> (8 * byte) & 0xff)) * 16777619u;
    return (hash >> 24 ^ hash) & 0xffffff;
}

// Cuts a message: `capacity` is what a segment holds at most in elements, `wanted_slots` how many may work side by side.
// Small messages are spread over the slots in pieces of at least `min_segment` elements.
QR_FN void cut_into_tiles(Call& call, uint64_t ranks_per_tile, uint64_t capacity, uint64_t wanted_slots,
                          uint64_t min_segment) {
    const uint64_t per_slot = divide_up(call.num_elements, wanted_slots * ranks_per_tile);
    const uint64_t at_least = per_slot < min_segment ? min_segment : per_slot;
    call.segment_elements = smaller(capacity, round_up(at_least, kBlock));
    call.num_tiles = divide_up(call.num_elements, call.segment_elements * ranks_per_tile);
    call.num_slots = uint32_t(smaller(call.num_tiles, wanted_slots));
}

}  // namespace splitrank::quick_reduce
