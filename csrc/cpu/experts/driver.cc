#include <algorithm>
#include <cmath>

#include "../operations.h"

namespace splitrank::cpu {

namespace {

constexpr int64_t kRowsOfUnit = 4, kRowsOfWideDown = 16;

float sigmoid(float x) { return float(1 / (1 + std::exp(-double(x)))); }

Weight of_expert(const Weight& first, int64_t bytes, int64_t expert) {
    Weight weight = first;
    weight.data = static_cast<const char*>(first.data) + expert * bytes;
    return weight;
}

// The k largest logits, of equal ones the first, and their softmax. NaN is never larger.
void choose(const float* logits, int64_t num_experts, int64_t top_k, int64_t* chosen, double* shares) {
    double total = 0;
    for (int64_t slot = 0; slot < top_k; ++slot) {
        int64_t best = -1;
        for (int64_t expert = 0; expert < num_experts; ++expert)
            if (std::find(chosen, chosen + slot, expert) == chosen + slot && (best < 0 || logits[expert] > logits[best]))
                best = expert;
        chosen[slot] = best;
        total += shares[slot] = std::exp(double(logits[best]) - double(logits[chosen[0]]));
    }
    for (int64_t slot = 0; slot < top_k; ++slot) shares[slot] /= total;
}

// Rows and factors of each expert, in order of the rows.
struct Routed {
    std::vector<int64_t> begins, rows;
    std::vector<float> factors;

    Routed(const std::vector<int64_t>& chosen, const std::vector<float>& shares, int64_t num_rows, int64_t top_k,
           int64_t num_experts)
        : begins(size_t(num_experts + 1)), rows(chosen.size()), factors(chosen.size()) {
        for (const int64_t expert : chosen) ++begins[size_t(expert + 1)];
        for (size_t expert = 1; expert < begins.size(); ++expert) begins[expert] += begins[expert - 1];
        std::vector<int64_t> next(begins.begin(), begins.end() - 1);
        for (int64_t i = 0; i < num_rows * top_k; ++i) {
            const int64_t at = next[size_t(chosen[size_t(i)])]++;
            rows[size_t(at)] = i / top_k;
            factors[size_t(at)] = shares[size_t(i)];
        }
    }
};

// A part of one expert's gate and up.
struct Unit {
    int64_t expert, first, last;
};

}  // namespace

void Operations::experts(const Stream& stream, const ExpertsLayer& layer, const Values& out) {
    const int64_t num_rows = stream.num_rows, top_k = layer.top_k, num_pairs = num_rows * top_k;
    const Inputs inputs = normed(stream);

    // Router, and the shared expert's gate and up.
    const DType dtype = stream.residual.dtype;
    const int64_t num_logits = layer.num_experts + 1;
    const Values logits{gates_.floats(num_rows * num_logits), dtype, num_logits};
    linear(inputs, num_rows, layer.router, logits);
    const int64_t stride = ceil_div(layer.inner, kPanel) * kPanel + kPanel;
    const int64_t shared_stride = ceil_div(layer.shared_inner, kPanel) * kPanel + kPanel;
    float* activations = activations_.floats(num_pairs * stride + num_rows * shared_stride);
    float* shared = activations + num_pairs * stride;
    std::vector<int64_t> every(static_cast<size_t>(num_rows));
    for (int64_t row = 0; row < num_rows; ++row) every[size_t(row)] = row;

    std::vector<int64_t> chosen(static_cast<size_t>(num_pairs));
    std::vector<float> shares(static_cast<size_t>(num_pairs)), shared_factors(static_cast<size_t>(num_rows));
    run_rows(num_rows, kRowsOfUnit, [&](int64_t row, int thread) {
        float* of_row = of_thread_[size_t(thread)].floats(num_logits);
        std::vector<double> exact(static_cast<size_t>(top_k));
        kernels_.convert(logits, row, 0, num_logits, of_row);
        choose(of_row, layer.num_experts, top_k, &chosen[size_t(row * top_k)], exact.data());
        for (int64_t slot = 0; slot < top_k; ++slot) shares[size_t(row * top_k + slot)] = float(exact[size_t(slot)]);
        shared_factors[size_t(row)] = sigmoid(of_row[layer.num_experts]);
    });
    const Routed routed(chosen, shares, num_rows, top_k, layer.num_experts);

    // Gate and up of every expert that has rows; the shared one has number E.
    std::vector<Unit> units;
    const auto cut = [&](int64_t expert, int64_t inner) {
        const int64_t pairs = ceil_div(inner, kPanel);
        for (int64_t first = 0; first < pairs; first += 4) units.push_back({expert, first, std::min(pairs, first + 4)});
    };
    for (int64_t expert = 0; expert < layer.num_experts; ++expert)
        if (routed.begins[size_t(expert)] < routed.begins[size_t(expert + 1)]) cut(expert, layer.inner);
    cut(layer.num_experts, layer.shared_inner);
    const auto fill_ends = [](float* rows, int64_t count, int64_t row_stride) {
        for (int64_t row = 0; row < count; ++row)
            std::fill(rows + (row + 1) * row_stride - kPanel, rows + (row + 1) * row_stride, 0.0f);
    };
    pool_.run(int64_t(units.size()), [&](int64_t number, int) {
        const auto [expert, first, last] = units[size_t(number)];
        if (expert == layer.num_experts) {
            kernels_.gate_up(inputs.rows, inputs.stride, every.data(), num_rows, layer.shared_gate_up, first, last, dtype,
                             shared, shared_stride);
            if (first == 0) fill_ends(shared, num_rows, shared_stride);
            return;
        }
        const int64_t begin = routed.begins[size_t(expert)], count = routed.begins[size_t(expert + 1)] - begin;
        kernels_.gate_up(inputs.rows, inputs.stride, &routed.rows[size_t(begin)], count,
                         of_expert(layer.gate_up, layer.gate_up_bytes, expert), first, last, dtype,
                         activations + begin * stride, stride);
        if (first == 0) fill_ends(activations + begin * stride, count, stride);
    });

    // Down: a unit owns some outputs, and adds the experts to them in the order of their numbers.
    // Four panels are for experts with one row; with many rows the sums of a unit would not stay in the cache.
    const int64_t num_panels = layer.down.num_panels(), panels = num_rows <= kRowsOfWideDown ? kMostDownPanels : 2;
    const int64_t sums_size = num_rows * layer.down.num_shards * panels * kPanel;
    pool_.run(ceil_div(num_panels, panels), [&](int64_t unit, int thread) {
        const int64_t first = unit * panels, last = std::min(num_panels, first + panels);
        float* sums = of_thread_[size_t(thread)].floats(sums_size);
        std::fill(sums, sums + sums_size, 0.0f);
        for (int64_t expert = 0; expert < layer.num_experts; ++expert) {
            const int64_t begin = routed.begins[size_t(expert)], count = routed.begins[size_t(expert + 1)] - begin;
            if (count)
                kernels_.down(activations + begin * stride, stride, &routed.rows[size_t(begin)],
                              &routed.factors[size_t(begin)], count, of_expert(layer.down, layer.down_bytes, expert),
                              first, last, sums);
        }
        kernels_.down(shared, shared_stride, every.data(), shared_factors.data(), num_rows, layer.shared_down, first,
                      last, sums);
        kernels_.combine(sums, num_rows, layer.down, first, last, out);
    });
}

}  // namespace splitrank::cpu
