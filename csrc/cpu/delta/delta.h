// Causal convolution and gated delta rule, token by token for prompts too: a token's bits depend on the tokens before it
// and not on where chunks begin. On a CPU this is also less work than the chunked form, whose blocks of 64 tokens need
// twice the multiply-adds: some columns of a head's state stay in the nearest cache from token to token.
#pragma once

#include "../kernels.h"
#include "../simd/values.h"

namespace splitrank::cpu_kernels {

using cpu::DeltaHead;

inline void unit(float* values, int64_t width, float eps, float factor) {
    const Vec inverse = broadcast(factor / __builtin_sqrtf(sum_of_squares(values, width) + eps));
    for (int64_t i = 0; i < width; i += kLanes)
        store_part(values + i, width - i, load_part(values + i, width - i) * inverse);
}

inline void conv(const Values& x, int64_t row, int64_t num_tokens, const Values& state, const float* taps,
                 int64_t num_taps, int64_t num_channels, int64_t first, int64_t last, float* out, int64_t out_stride) {
    constexpr int64_t kMostTaps = 16;
    const int64_t kept = num_taps - 1;
    for (int64_t channel = first; channel < last; channel += kLanes) {
        const int64_t rest = last - channel;
        Vec window[kMostTaps], weights[kMostTaps];
        for (int64_t tap = 0; tap < num_taps; ++tap) {
            weights[tap] = load_part(taps + tap * num_channels + channel, rest);
            if (tap < kept) window[tap] = load_values(state, tap * num_channels + channel, rest);
        }
        for (int64_t token = 0; token < num_tokens; ++token) {
            window[kept] = load_values(x, (row + token) * x.stride + channel, rest);
            Vec sum{};
            for (int64_t tap = 0; tap < num_taps; ++tap) sum = fma(window[tap], weights[tap], sum);
            for (int64_t tap = 0; tap < kept; ++tap) window[tap] = window[tap + 1];
            store_part(out + token * out_stride + channel, rest, silu(sum));
        }
        for (int64_t tap = 0; tap < kept; ++tap) store_values(state, tap * num_channels + channel, rest, window[tap]);
    }
}

// even(0), odd(1), even(2), ...: sums that are chosen by a number of the loop would lie in memory.
template <class Even, class Odd>
inline void in_pairs(int64_t count, const Even& even, const Odd& odd) {
    for (int64_t i = 0; i + 1 < count; i += 2) even(i), odd(i + 1);
    if (count % 2) even(count - 1);
}

// V vectors of columns; `state` has `stride` floats between key dims.
template <int V>
inline void delta_columns(const DeltaHead& head, int64_t column, float* state, int64_t stride, int64_t count) {
    for (int64_t token = 0; token < head.num_tokens; ++token) {
        const float *q = head.q + token * head.key_stride, *k = head.k + token * head.key_stride;
        const Vec decay = broadcast(head.decay[token * head.head_stride]);
        const Vec beta = broadcast(head.beta[token * head.head_stride]);
        const float* v = head.v + token * head.value_stride + column;
        Vec even[V] = {}, odd[V] = {}, update[V];  // sums of the even and of the odd key dims
        const auto read = [&](int64_t i, Vec* sums) {
            const Vec key = broadcast(k[i]);
            for (int vec = 0; vec < V; ++vec) {
                const Vec decayed = load(state + i * stride + vec * kLanes) * decay;
                sums[vec] = fma(key, decayed, sums[vec]);
            }
        };
        in_pairs(head.key_dim, [&](int64_t i) { read(i, even); }, [&](int64_t i) { read(i, odd); });
        for (int vec = 0; vec < V; ++vec) {
            const Vec value = load_part(v + vec * kLanes, count - vec * kLanes);
            update[vec] = beta * (value - (even[vec] + odd[vec]));
            even[vec] = odd[vec] = Vec{};
        }
        const auto write = [&](int64_t i, Vec* sums) {
            const Vec key = broadcast(k[i]), query = broadcast(q[i]);
            for (int vec = 0; vec < V; ++vec) {
                float* at = state + i * stride + vec * kLanes;
                const Vec updated = fma(key, update[vec], load(at) * decay);
                store(at, updated);
                sums[vec] = fma(query, updated, sums[vec]);
            }
        };
        in_pairs(head.key_dim, [&](int64_t i) { write(i, even); }, [&](int64_t i) { write(i, odd); });
        float* out = head.out + token * head.value_stride + column;
        for (int vec = 0; vec < V; ++vec)
            store_part(out + vec * kLanes, count - vec * kLanes, even[vec] + odd[vec]);
    }
}

// Columns that do not fill a vector are computed in a copy.
inline void delta_rest(const DeltaHead& head, int64_t column, int64_t count) {
    float state[cpu::kMostHead * kLanes];
    for (int64_t i = 0; i < head.key_dim; ++i)
        store(state + i * kLanes, load_part(head.state + i * head.value_dim + column, count));
    delta_columns<1>(head, column, state, kLanes, count);
    for (int64_t i = 0; i < head.key_dim; ++i)
        store_part(head.state + i * head.value_dim + column, count, load(state + i * kLanes));
}

inline void delta(const DeltaHead& head, int64_t first, int64_t last) {
    constexpr int kWide = 32 / kLanes;
    int64_t column = first;
    for (; column + 32 <= last; column += 32)
        delta_columns<kWide>(head, column, head.state + column, head.value_dim, 32);
    for (; column + kLanes <= last; column += kLanes)
        delta_columns<1>(head, column, head.state + column, head.value_dim, kLanes);
    if (column < last) delta_rest(head, column, last - column);
}

}  // namespace splitrank::cpu_kernels
