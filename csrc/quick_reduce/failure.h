// What a rank knows of the first thing that went wrong. Written once; the host turns it into an exception.
#pragma once

#include "portability.h"

namespace splitrank::quick_reduce {

enum class FailureKind : uint32_t {
    kNone = 0,
    kTimeout = 1,   // a peer's flag did not come within the limit
    kMismatch = 2,  // it came with another fingerprint: number of the call, size, dtype, codec or algorithm differ
    kAhead = 3,     // it came from a later use of the slot: this rank missed a call
    kOverlap = 4,   // two calls on one communicator at the same time
    kAborted = 5,   // a peer or the host gave up
};

// Lies where the host can read it while a kernel runs. `kind` is claimed first, `complete` is written last.
struct Failure {
    uint32_t kind;  // FailureKind
    uint32_t complete;
    uint32_t rank;
    uint32_t slot;
    uint32_t phase;  // 1 or 2; 0: before the first
    uint32_t peer;
    uint64_t expected;
    uint64_t seen;
};

}  // namespace splitrank::quick_reduce
