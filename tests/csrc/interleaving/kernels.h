// The shipped templates as functions, by layout, world size and kind of call.
#pragma once

#include "fibre_executor.h"
#include "quick_reduce/handshake.h"

namespace interleaving {

namespace quick_reduce = splitrank::quick_reduce;
using quick_reduce::Algorithm;
using quick_reduce::Call;
using quick_reduce::CodecKind;
using quick_reduce::DType;
using quick_reduce::View;

constexpr uint32_t kTaggedRows = 48;  // of a place for tagged words, with its header: four units of 32 floats

// The layouts that can be asked for.
enum class Protocol {
    kShipped,
    kHistoricalEqual,      // historical addresses, waits for exactly the colour
    kHistoricalAtLeast,    // ... or a later one
    kHistoricalAddresses,  // historical addresses under the shipped handshake
};

struct Kind {
    DType dtype;
    CodecKind codec;
    Algorithm algorithm;
    bool operator==(const Kind&) const = default;
};

struct Kernel {
    Kind kind;
    // One lane of one slot, a tile at a time.
    // `inputs`: every rank's, by rank; for the algorithm that reads them in place.
    bool (*run_slot)(FibreExecutor&, const View&, const Call&, const void* const* inputs, uint32_t slot);
    // One lane of one block that keeps several slots in hand, as on a GPU; whether it failed is on record.
    void (*run_block)(FibreExecutor&, const View&, const Call&, const void* const* inputs, uint32_t block);
    // A whole call on one thread, as on a CPU; null where there is none.
    bool (*run_call)(FibreExecutor&, const View&, const Call&);
    // What every rank must have afterwards: `inputs` and `output` hold raw elements.
    void (*reference)(const void* const* inputs, uint32_t world_size, uint64_t num_elements, void* output);
    uint64_t (*capacity)(uint64_t segment_bytes);
};

struct Kernels {
    const Kernel* begin_;
    const Kernel* end_;
    const Kernel* begin() const { return begin_; }
    const Kernel* end() const { return end_; }
    uint32_t size() const { return uint32_t(end_ - begin_); }
};

Kernels kernels(Protocol protocol, uint32_t world_size);

}  // namespace interleaving
