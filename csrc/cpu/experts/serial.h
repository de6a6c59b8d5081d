// The specification of the routed experts and the shared one, for one token. Experts are added in the order of their
// numbers, the shared one last; each virtual shard of the inner width has a sum of its own, and the sums are added along
// the tree of linear/serial.h.
#pragma once

#include <vector>

#include "../linear/serial.h"

namespace splitrank::cpu::serial {

struct Expert {
    const float *gate_up, *down;  // [2I, H], gate rows first; [H, I]
    float factor;
};

inline void experts(const float* x, const std::vector<Expert>& chosen, int64_t hidden, int64_t inner,
                    const int64_t* bounds, int64_t num_shards, float* out) {
    std::vector<float> sums(size_t(hidden * num_shards), 0.0f), activation(static_cast<size_t>(inner));
    for (const Expert& expert : chosen) {
        for (int64_t i = 0; i < inner; ++i) {
            const float gate = chain(x, expert.gate_up + i * hidden, 0, hidden);
            const float up = chain(x, expert.gate_up + (inner + i) * hidden, 0, hidden);
            activation[size_t(i)] = gate / (1 + std::exp(-gate)) * up;
        }
        for (int64_t output = 0; output < hidden; ++output)
            for (int64_t shard = 0; shard < num_shards; ++shard) {
                float& sum = sums[size_t(output * num_shards + shard)];
                const float down = chain(activation.data(), expert.down + output * inner, bounds[shard],
                                         bounds[shard + 1]);
                sum = std::fma(expert.factor, down, sum);
            }
    }
    for (int64_t output = 0; output < hidden; ++output) out[output] = tree(&sums[size_t(output * num_shards)], num_shards);
}

}  // namespace splitrank::cpu::serial
