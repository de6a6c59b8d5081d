// The specification of the gated delta rule, token by token: S <- a S; S <- S + k (beta (v - k^T S)); o = q^T S.
#pragma once

#include <cmath>
#include <cstdint>

#include "../kernels.h"

namespace splitrank::cpu::serial {

// A product with the state is two chains over the even and the odd key dims, added at the end.
inline void delta(const DeltaHead& head) {
    for (int64_t token = 0; token < head.num_tokens; ++token) {
        const float *q = head.q + token * head.key_stride, *k = head.k + token * head.key_stride;
        const float decay = head.decay[token * head.head_stride], beta = head.beta[token * head.head_stride];
        for (int64_t column = 0; column < head.value_dim; ++column) {
            float* state = head.state + column;
            float read[2] = {}, out[2] = {};
            for (int64_t i = 0; i < head.key_dim; ++i) {
                state[i * head.value_dim] *= decay;
                read[i % 2] = std::fma(k[i], state[i * head.value_dim], read[i % 2]);
            }
            const float update = beta * (head.v[token * head.value_stride + column] - (read[0] + read[1]));
            for (int64_t i = 0; i < head.key_dim; ++i) {
                state[i * head.value_dim] = std::fma(k[i], update, state[i * head.value_dim]);
                out[i % 2] = std::fma(q[i], state[i * head.value_dim], out[i % 2]);
            }
            head.out[token * head.value_stride + column] = out[0] + out[1];
        }
    }
}

}  // namespace splitrank::cpu::serial
