// What ranks tell each other before the first call; travels as bytes between processes of one machine.
#pragma once

#include <cstdint>
#include <string>

#include "shared_memory.h"

namespace splitrank::quick_reduce_cpu {

constexpr uint32_t kProtocol = 2;  // of regions and handles: processes of different versions refuse each other

struct Handle {
    uint32_t protocol;
    uint32_t rank;
    uint32_t world_size;
    uint32_t num_slots;
    uint64_t segment_bytes;
    uint64_t token;  // lies in the region too: a recycled process number does not match
    SharedMemoryAddress address;
};

// Where the token lies in a region, behind the abort word.
constexpr uint64_t kTokenOffset = 1024;

std::string to_bytes(const Handle& handle);
// Throws std::invalid_argument when the bytes are none of this version's.
Handle handle_from_bytes(const std::string& bytes);

// A number that no other region has.
uint64_t make_token();

}  // namespace splitrank::quick_reduce_cpu
