#include <algorithm>
#include <cmath>
#include <cstring>

#include "../operations.h"

namespace splitrank::cpu {

namespace {

constexpr int64_t kChannels = 128, kColumns = 32, kRowsOfUnit = 4, kUnitsOfThread = 4;
constexpr float kUnitEps = 1e-6f;

// In double, by the C library: some thousand values a step.
double softplus(double x) { return x > 20 ? x : std::log1p(std::exp(x)); }

}  // namespace

void Operations::conv_and_gates(const Values& projected, int64_t num_rows, const std::vector<Span>& spans,
                                const DeltaLayer& layer, float* mixed, float* decay, float* beta) {
    const int64_t channels = layer.channels(), kept = layer.num_taps - 1, groups = ceil_div(channels, kChannels);
    const int64_t element = element_bytes(layer.conv_states.dtype);
    pool_.run(int64_t(spans.size()) * groups, [&](int64_t unit, int) {
        const Span& span = spans[size_t(unit / groups)];
        char* at = static_cast<char*>(layer.conv_states.data) + span.slot * kept * channels * element;
        const int64_t first = unit % groups * kChannels, last = std::min(channels, first + kChannels);
        if (span.start == 0)
            for (int64_t tap = 0; tap < kept; ++tap)
                std::memset(at + (tap * channels + first) * element, 0, size_t((last - first) * element));
        kernels_.conv(projected, span.row, span.length, {at, layer.conv_states.dtype, channels}, layer.taps,
                      layer.num_taps, channels, first, last, mixed + span.row * channels, channels);
    });
    const int64_t heads = layer.value_heads, gates_at = channels + heads * layer.value_dim;
    run_rows(num_rows, kRowsOfUnit, [&](int64_t row, int) {
        float* of_row = mixed + row * channels;
        for (int64_t head = 0; head < 2 * layer.key_heads; ++head)
            kernels_.unit(of_row + head * layer.key_dim, layer.key_dim, kUnitEps,
                          head < layer.key_heads ? 1 / std::sqrt(float(layer.key_dim)) : 1.0f);
        kernels_.convert(projected, row, gates_at, heads, beta + row * heads);
        kernels_.convert(projected, row, gates_at + heads, heads, decay + row * heads);
        for (int64_t head = 0; head < heads; ++head) {
            float &a = decay[row * heads + head], &b = beta[row * heads + head];
            b = float(1 / (1 + std::exp(-double(b))));
            a = float(std::exp(double(layer.decay_rate[head]) * softplus(double(a) + layer.dt_bias[head])));
        }
    });
}

void Operations::delta(const Values& projected, int64_t num_rows, const std::vector<Span>& spans,
                       const DeltaLayer& layer, const Values& out) {
    const int64_t channels = layer.channels(), heads = layer.value_heads;
    float* mixed = mixed_.floats(num_rows * channels);
    float* decay = gates_.floats(2 * num_rows * heads);
    float* beta = decay + num_rows * heads;
    conv_and_gates(projected, num_rows, spans, layer, mixed, decay, beta);
    // A whole head, whose state lies together, where that gives every thread enough to do; else some of its columns.
    const bool is_whole = int64_t(spans.size()) * heads >= kUnitsOfThread * pool_.num_threads();
    const int64_t columns = is_whole ? layer.value_dim : kColumns;
    const int64_t blocks = ceil_div(layer.value_dim, columns), units = heads * blocks;
    const int64_t values_at = 2 * layer.key_heads * layer.key_dim, state_size = layer.key_dim * layer.value_dim;
    pool_.run(int64_t(spans.size()) * units, [&](int64_t unit, int) {
        const Span& span = spans[size_t(unit / units)];
        const int64_t head = unit % units / blocks, column = unit % blocks * columns;
        const int64_t last = std::min(layer.value_dim, column + columns);
        float* row = mixed + span.row * channels;
        float* state = layer.delta_states + (span.slot * heads + head) * state_size;
        const float* query = row + head * layer.key_heads / heads * layer.key_dim;
        float* values = row + values_at + head * layer.value_dim;
        if (span.start == 0)
            for (int64_t i = 0; i < layer.key_dim; ++i)
                std::fill(state + i * layer.value_dim + column, state + i * layer.value_dim + last, 0.0f);
        // A token's outputs take the place of its values, which nobody reads again.
        kernels_.delta({query, query + layer.key_heads * layer.key_dim, values, channels, channels,
                        decay + span.row * heads + head, beta + span.row * heads + head, heads, values, state,
                        span.length, layer.key_dim, layer.value_dim},
                       column, last);
    });
    run_rows(num_rows, kRowsOfUnit, [&](int64_t row, int) {
        for (int64_t head = 0; head < heads; ++head)
            kernels_.gated_norm(mixed + row * channels + values_at + head * layer.value_dim, projected, row,
                                channels + head * layer.value_dim, layer.value_dim, layer.norm, out,
                                head * layer.value_dim);
    });
}

}  // namespace splitrank::cpu
