// Host side only: what a mailbox checks of its caller's arguments, in the same words on all targets.
#pragma once

#include <cstring>
#include <stdexcept>
#include <string>
#include <vector>

#include "mailbox.h"

namespace splitrank::stage_mailbox {

constexpr uint32_t kMaxPlaces = 64;
constexpr uint64_t kMaxPartCapacity = uint64_t(1) << 34;
constexpr uint32_t kHandleProtocol = 1;

inline std::string text(uint64_t number) { return std::to_string(number); }

// What stages tell each other of their regions, beside where these are.
struct Shape {
    uint32_t stage;
    uint32_t num_stages;
    uint32_t num_places;
    uint32_t reserved;
    uint64_t part_capacity;
};

// Throws std::invalid_argument with the number that is wrong, as all of these do.
inline Shape checked_shape(uint32_t stage, uint32_t num_stages, uint32_t num_places, uint64_t part_capacity) {
    if (num_stages < 2) throw std::invalid_argument(text(num_stages) + " stages: a ring has two at least");
    if (stage >= num_stages) throw std::invalid_argument("stage " + text(stage) + " of " + text(num_stages));
    if (num_places < 1 || num_places > kMaxPlaces)
        throw std::invalid_argument(text(num_places) + " places: between 1 and " + text(kMaxPlaces) + " are possible");
    if (part_capacity < kPartAlignment || part_capacity > kMaxPartCapacity)
        throw std::invalid_argument("parts of " + text(part_capacity) + " bytes: between " + text(kPartAlignment) +
                                    " and " + text(kMaxPartCapacity) + " are possible");
    return {stage, num_stages, num_places, 0, round_up(part_capacity, kPartAlignment)};
}

inline void check_peer(const Shape& own, const Shape& peer, uint32_t stage) {
    if (peer.stage != stage || peer.num_stages != own.num_stages || peer.num_places != own.num_places)
        throw std::invalid_argument("the handle of stage " + text(stage) + " is of stage " + text(peer.stage) + " of " +
                                    text(peer.num_stages) + " with " + text(peer.num_places) + " places, this one is of " +
                                    text(own.num_stages) + " with " + text(own.num_places));
}

// What a stage gives the others, as bytes. Region: how they find its memory.
template <typename Region>
struct Handle {
    uint32_t protocol;
    uint32_t reserved;
    Shape shape;
    Region region;
};

// The handle of `stage`; std::invalid_argument if it is of another version or ring than `own`.
template <typename Region>
Handle<Region> handle_from_bytes(const std::string& bytes, const Shape& own, uint32_t stage) {
    Handle<Region> handle{};
    if (bytes.size() == sizeof(handle)) std::memcpy(&handle, bytes.data(), sizeof(handle));
    if (handle.protocol != kHandleProtocol)
        throw std::invalid_argument("the handle of stage " + text(stage) + " is of protocol " + text(handle.protocol) +
                                    ", this one is of " + text(kHandleProtocol));
    check_peer(own, handle.shape, stage);
    return handle;
}

inline Message make_message(const std::vector<uint64_t>& parts, const Header& header, uint64_t capacity,
                            uint64_t timeout_ns) {
    if (parts.empty() || parts.size() > kMaxParts)
        throw std::invalid_argument(text(parts.size()) + " tensors: a message has 1 to " + text(kMaxParts));
    if (header.part_bytes == 0 || header.part_bytes % sizeof(uint32_t) != 0)
        throw std::invalid_argument("tensors of " + text(header.part_bytes) + " bytes: not a multiple of 4 above 0");
    if (header.part_bytes > capacity)
        throw std::invalid_argument("tensors of " + text(header.part_bytes) + " bytes: a place holds " + text(capacity));
    Message message{};
    for (size_t i = 0; i < parts.size(); ++i) {
        if (parts[i] == 0 || parts[i] % kPartAlignment != 0)
            throw std::invalid_argument("tensor " + text(i) + " is not aligned to " + text(kPartAlignment) + " bytes");
        message.parts[i] = reinterpret_cast<std::byte*>(parts[i]);
    }
    message.num_parts = uint32_t(parts.size());
    message.num_blocks = 1;
    message.header = header;
    message.timeout_ns = timeout_ns;
    return message;
}

}  // namespace splitrank::stage_mailbox
