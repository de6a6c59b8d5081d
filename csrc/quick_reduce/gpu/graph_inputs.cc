#include "graph_inputs.h"

#include <cstring>

namespace splitrank::quick_reduce_gpu {

namespace {

MemoryName name_of(const std::string& bytes, size_t rank) {
    if (bytes.size() != sizeof(MemoryName))
        throw std::invalid_argument("a captured input's name has " + std::to_string(sizeof(MemoryName)) +
                                    " bytes, not " + std::to_string(bytes.size()) + " as that of rank " +
                                    std::to_string(rank));
    MemoryName name;
    std::memcpy(&name, bytes.data(), sizeof(name));
    return name;
}

}  // namespace

void GraphInputs::create(uint32_t world_size, int device) {
    world_size_ = world_size;
    device_ = device;
    void* table = nullptr;
    check(QR_RUNTIME(Malloc)(&table, num_bytes()), "the table of graph inputs, " + std::to_string(num_bytes()) + " bytes");
    table_.reset(static_cast<const void**>(table));
    check(QR_RUNTIME(Memset)(table, 0, num_bytes()), "zeroing the table of graph inputs");
}

const void* const* GraphInputs::add(const void* input, uint64_t num_bytes) {
    if (inputs_.size() == kMaxCalls)
        throw std::runtime_error("a communicator takes " + std::to_string(kMaxCalls) +
                                 " captured calls of the registered algorithm, all are used");
    inputs_.push_back({input, num_bytes});
    return table_.get() + (inputs_.size() - 1) * world_size_;
}

std::vector<std::string> GraphInputs::pending() const {
    std::vector<std::string> names;
    for (size_t call = num_registered_; call < inputs_.size(); ++call) {
        const MemoryName name = name_memory(inputs_[call].address, inputs_[call].num_bytes, device_);
        names.emplace_back(reinterpret_cast<const char*>(&name), sizeof(name));
    }
    return names;
}

void GraphInputs::patch(uint32_t rank, const std::vector<std::vector<std::string>>& by_rank, PeerMemory& peers) {
    const size_t num_new = inputs_.size() - num_registered_;
    if (by_rank.size() != world_size_)
        throw std::invalid_argument(std::to_string(by_rank.size()) + " lists of inputs for " +
                                    std::to_string(world_size_) + " ranks");
    for (size_t peer = 0; peer < world_size_; ++peer)
        if (by_rank[peer].size() != num_new)
            throw std::invalid_argument("rank " + std::to_string(peer) + " has captured " +
                                        std::to_string(by_rank[peer].size()) + " calls, this rank " +
                                        std::to_string(num_new));
    std::vector<const void*> rows(num_new * world_size_);
    for (size_t call = 0; call < num_new; ++call)
        for (size_t peer = 0; peer < world_size_; ++peer) {
            const Input& own = inputs_[num_registered_ + call];
            const MemoryName name = name_of(by_rank[peer][call], peer);
            if (name.num_bytes != own.num_bytes)
                throw std::invalid_argument("captured call " + std::to_string(call) + ": rank " + std::to_string(peer) +
                                            " has " + std::to_string(name.num_bytes) + " bytes, this rank " +
                                            std::to_string(own.num_bytes));
            rows[call * world_size_ + peer] = peer == rank ? own.address : peers.map(name);
        }
    if (rows.empty()) return;
    check(QR_RUNTIME(Memcpy)(table_.get() + num_registered_ * world_size_, rows.data(), rows.size() * sizeof(rows[0]),
                             QR_RUNTIME(MemcpyHostToDevice)),
          "writing the table of graph inputs");
    num_registered_ = inputs_.size();
}

}  // namespace splitrank::quick_reduce_gpu
