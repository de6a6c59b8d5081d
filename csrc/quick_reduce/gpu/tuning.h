// How a call is spread over blocks, by its size; measured on two H200s (csrc/README.md).
#pragma once

#include "../call.h"

namespace splitrank::quick_reduce_gpu {

// Blocks that work side by side, threads of each, tiles that a block has at least, and the least of the input that is
// worth a tile of its own. 0: as tuned.
struct Tuning {
    uint32_t num_blocks = 0;
    uint32_t num_threads = 0;
    uint32_t tiles_per_block = 0;
    uint32_t min_tile_bytes = 0;
};

Tuning tune(quick_reduce::Algorithm algorithm, quick_reduce::CodecKind codec, uint64_t num_bytes);

}  // namespace splitrank::quick_reduce_gpu
