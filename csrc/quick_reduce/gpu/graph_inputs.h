// The inputs of registered calls: a table on the device, a row a captured call, with every rank's input as mapped here.
//
// A captured kernel holds its row's address. Rows are null until all ranks have exchanged the names of their inputs, so
// that a graph that is replayed too early fails instead of reading anywhere.
#pragma once

#include <vector>

#include "memory.h"

namespace splitrank::quick_reduce_gpu {

class GraphInputs {
  public:
    // Calls that can be captured on one communicator. A row for every rank: 64 KiB for two ranks.
    static constexpr uint32_t kMaxCalls = 4096;

    void create(uint32_t world_size, int device);
    void close() { table_.reset(); }
    uint64_t num_bytes() const { return uint64_t(kMaxCalls) * world_size_ * sizeof(void*); }

    // The row of the next captured call.
    const void* const* add(const void* input, uint64_t num_bytes);

    // Names of the inputs that are not registered yet, in the order of their calls.
    std::vector<std::string> pending() const;
    // Maps them and fills their rows. `by_rank`: what pending() gave on each rank.
    void patch(uint32_t rank, const std::vector<std::vector<std::string>>& by_rank, PeerMemory& peers);

  private:
    struct Input {
        const void* address;
        uint64_t num_bytes;
    };

    uint32_t world_size_ = 0;
    int device_ = 0;
    DeviceMemory<const void*> table_;
    std::vector<Input> inputs_;
    size_t num_registered_ = 0;
};

}  // namespace splitrank::quick_reduce_gpu
