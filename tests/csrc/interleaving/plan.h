// What the ranks do in one schedule: which calls each of them makes, and what goes wrong.
#pragma once

#include <string>
#include <vector>

#include "kernels.h"
#include "random.h"

namespace interleaving {

enum class Fault : uint32_t {
    kNone,
    kDeadPeer,
    kDeadPeerOneLimit,  // only one waiting rank has a limit: the others end by its abort words
    kHostGivesUp,       // no wait has a limit, but the host of one raises its abort word
    kExtraCall,
    kMissingCall,
    kSize,
    kDType,
    kCodec,
    kAlgorithm,
    kOverlap,     // a rank runs two calls at a time
    kImpatience,  // a rank gives up on peers that are only slow
    kLostCount,   // a rank's sequence numbers are behind
    kCount,
};
const char* name(Fault fault);
Fault fault_named(const char* name);  // kCount: there is none

struct Contract {
    Kind kind;
    uint64_t num_elements;
    uint64_t capacity;  // elements of a segment at most
    uint32_t wanted_slots;
};

struct PlannedCall {
    Contract contract;
    uint32_t id;  // equal ids: one captured call, replayed
    uint64_t timeout_ns;
    uint32_t stream = 0;
    bool in_place = false;
};

struct Plan {
    uint32_t world_size;
    uint32_t num_slots;  // of a call at most
    bool in_blocks;  // all ranks run gpu/kernels.h: a call's slots are blocks, with several slots of the region each
    uint32_t num_lanes;  // of a slot
    uint64_t first_sequence;
    Fault fault;
    uint32_t culprit;                             // rank
    std::vector<std::vector<PlannedCall>> calls;  // by rank, in the order of issue
    std::vector<bool> host_like;                  // by rank: one thread plays all slots
    uint32_t region_slots() const { return num_slots * (in_blocks ? 3 : 1); }
    static constexpr uint64_t kSegmentBytes = 640;
    static constexpr uint64_t kNever = uint64_t(1) << 62;
};

struct Choice {
    Protocol protocol = Protocol::kShipped;
    uint32_t world_size = 0;  // 0: any
    bool faults = false;
    Fault fault = Fault::kCount;  // kCount: any
    bool equal_sizes = false;     // every call has as many slots as the one before
};

Plan make_plan(const Choice& choice, Random& random);

}  // namespace interleaving
