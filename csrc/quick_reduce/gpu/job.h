// What a launch hands to the kernels.
#pragma once

#include "../handshake.h"

namespace splitrank::quick_reduce {

// Of a block. More ranks need more registers for their parts, and tagged words for those that were sent ahead.
constexpr int max_threads(uint32_t world_size, bool tagged) { return tagged ? 256 : world_size == 2 ? 1024 : 512; }
constexpr uint32_t kSlotsPerBlock = 3;  // at most: as many as a tile has stages (kernels.h)

// All that one rank's blocks need.
struct Job {
    View view;
    Call call;  // num_slots: blocks, each with kSlotsPerBlock slots, and a tagged one
    const void* const* inputs;  // Registered: every rank's input as mapped here
    bool starts_early = false;  // before the launch before has ended, and so may the launch behind
};

// The kernel's address for a launch; null if there is none.
const void* find_kernel(DType dtype, uint32_t world_size, CodecKind codec, Algorithm algorithm);

}  // namespace splitrank::quick_reduce
