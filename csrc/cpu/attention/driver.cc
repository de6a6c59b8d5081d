#include <algorithm>
#include <cmath>
#include <cstring>

#include "../operations.h"

namespace splitrank::cpu {

namespace {

constexpr int64_t kQueriesOfUnit = 64, kRowsOfUnit = 4;

// Some tokens of a sequence, with some heads that share a kv head.
struct Unit {
    const Span* span;
    int64_t first, count, kv_head, head, num_heads;
};

std::vector<Unit> units_of(const std::vector<Span>& spans, const AttentionLayer& layer, int num_threads) {
    const int64_t group = layer.num_heads / layer.num_kv_heads;
    const int64_t tokens = std::max<int64_t>(1, kQueriesOfUnit / group);
    std::vector<Unit> units;
    for (const Span& span : spans)
        for (int64_t first = 0; first < span.length; first += tokens)
            for (int64_t kv_head = 0; kv_head < layer.num_kv_heads; ++kv_head)
                units.push_back({&span, first, std::min(tokens, span.length - first), kv_head, kv_head * group, group});
    if (int64_t(units.size()) >= num_threads || group == 1) return units;
    std::vector<Unit> single;  // so few that each head is one: they read the keys again, but all threads work
    for (const Unit& unit : units)
        for (int64_t head = 0; head < group; ++head)
            single.push_back({unit.span, unit.first, unit.count, unit.kv_head, unit.head + head, 1});
    return single;
}

}  // namespace

void Operations::queries_and_pages(const Values& projected, int64_t num_rows, const int64_t* kv_index,
                                   const float* cos_sin, const AttentionLayer& layer, float* queries) {
    const int64_t dim = layer.head_dim, kv_width = layer.num_kv_heads * dim, keys_at = 2 * layer.num_heads * dim;
    const Values keys{layer.keys, layer.dtype, kv_width}, values{layer.values, layer.dtype, kv_width};
    run_rows(num_rows, kRowsOfUnit, [&](int64_t row, int) {
        float head_values[kMostHead];
        const float* turn = cos_sin + row * layer.rotary_dim;
        for (int64_t head = 0; head < layer.num_heads; ++head)
            kernels_.norm_rotate(projected, row, 2 * head * dim, dim, layer.q_norm, turn, layer.rotary_dim,
                                 queries + (row * layer.num_heads + head) * dim);
        for (int64_t head = 0; head < layer.num_kv_heads; ++head) {
            kernels_.norm_rotate(projected, row, keys_at + head * dim, dim, layer.k_norm, turn, layer.rotary_dim,
                                 head_values);
            kernels_.round(head_values, dim, keys, kv_index[row], head * dim);
            kernels_.convert(projected, row, keys_at + kv_width + head * dim, dim, head_values);
            kernels_.round(head_values, dim, values, kv_index[row], head * dim);
        }
    });
}

void Operations::attention(const Values& projected, int64_t num_rows, const std::vector<Span>& spans,
                           const int64_t* kv_index, const float* cos_sin, const AttentionLayer& layer,
                           const Values& out) {
    const int64_t dim = layer.head_dim, element = element_bytes(layer.dtype);
    float* queries = mixed_.floats(num_rows * layer.num_heads * dim);  // [T, heads, dim]; the results take their place
    queries_and_pages(projected, num_rows, kv_index, cos_sin, layer, queries);
    const std::vector<Unit> units = units_of(spans, layer, pool_.num_threads());
    pool_.run(int64_t(units.size()), [&](int64_t number, int thread) {
        const Unit& unit = units[size_t(number)];
        const int64_t num_queries = unit.count * unit.num_heads, size = num_queries * dim;
        float* own = of_thread_[size_t(thread)].floats(2 * size + attend_scratch(num_queries, dim));
        int64_t positions[kQueriesOfUnit + kMostHead];
        const auto place = [&](int64_t query) {
            const int64_t row = unit.span->row + unit.first + query / unit.num_heads;
            return queries + (row * layer.num_heads + unit.head + query % unit.num_heads) * dim;
        };
        for (int64_t query = 0; query < num_queries; ++query) {
            std::memcpy(own + query * dim, place(query), size_t(dim) * sizeof(float));
            positions[query] = unit.span->start + unit.first + query / unit.num_heads;
        }
        const int64_t offset = unit.kv_head * dim * element;
        kernels_.attend({own, own + size, positions, num_queries, dim, 1 / std::sqrt(float(dim)),
                         static_cast<char*>(layer.keys) + offset, static_cast<char*>(layer.values) + offset,
                         layer.dtype, layer.num_kv_heads * dim, layer.page_size, unit.span->pages, own + 2 * size});
        for (int64_t query = 0; query < num_queries; ++query) {
            const int64_t row = unit.span->row + unit.first + query / unit.num_heads;
            const int64_t head = unit.head + query % unit.num_heads;
            kernels_.gate(own + size + query * dim, projected, row, (2 * head + 1) * dim, dim, out, head * dim);
        }
    });
}

void Operations::cos_sin(const int64_t* positions, int64_t num_rows, const float* frequencies, int64_t half,
                         float scale, float* out) {
    // In double, by the C library: a position's bits do not depend on where in a vector it lies.
    run_rows(num_rows, kRowsOfUnit, [&](int64_t row, int) {
        for (int64_t i = 0; i < half; ++i) {
            const double angle = float(positions[row]) * frequencies[i];
            out[row * 2 * half + i] = float(std::cos(angle) * scale);
            out[row * 2 * half + half + i] = float(std::sin(angle) * scale);
        }
    });
}

}  // namespace splitrank::cpu
