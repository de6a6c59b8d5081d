// The kernels of each instruction set that this machine has, against their serial versions: with a fused multiply-add
// bit by bit where the serial version has the kernel's order, else within a bound. Prints the number of wrong values.
#include <algorithm>
#include <array>
#include <cmath>
#include <cstdio>
#include <cstring>
#include <random>
#include <vector>

#include "cpu/attention/serial.h"
#include "cpu/delta/serial.h"
#include "cpu/experts/serial.h"
#include "cpu/kernels.h"
#include "cpu/linear/serial.h"
#include "cpu/norm/serial.h"

using namespace splitrank::cpu;

namespace {

std::mt19937 random_bits(7);
long num_checked = 0, num_wrong = 0;

std::vector<float> random_floats(int64_t count) {
    std::normal_distribution<float> normal;
    std::vector<float> values(static_cast<size_t>(count));
    for (float& value : values) value = normal(random_bits);
    return values;
}

void check(const char* what, double found, double expected, double tolerance) {
    ++num_checked;
    if (!(std::fabs(found - expected) <= tolerance)) {
        if (++num_wrong < 10) std::fprintf(stderr, "%s: %.9g, expected %.9g\n", what, found, expected);
    }
}

Weight make_weight(int64_t outputs, int64_t inputs, int64_t shards) {
    Weight weight{nullptr, DType::kFloat32, outputs, inputs, shards, {}, true};
    for (int64_t shard = 0; shard <= shards; ++shard) weight.bounds[shard] = inputs * shard / shards;
    return weight;
}

std::vector<float> packed(const Kernels& kernels, const std::vector<float>& plain, Weight& weight, bool interleaved) {
    const int64_t half = weight.num_outputs / 2;
    const int64_t panels = interleaved ? 2 * ((half + kPanel - 1) / kPanel) : weight.num_panels();
    std::vector<float> storage(static_cast<size_t>(panels * weight.panel_elements()));
    for (int64_t panel = 0; panel < panels; ++panel) {
        const void* rows[kPanel];
        for (int64_t i = 0; i < kPanel; ++i) {
            const int64_t row = interleaved ? panel / 2 * kPanel + i : panel * kPanel + i;
            const bool is_there = row < (interleaved ? half : weight.num_outputs);
            const int64_t at = interleaved && panel % 2 ? half + row : row;
            rows[i] = is_there ? plain.data() + at * weight.num_inputs : nullptr;
        }
        kernels.pack(rows, weight, storage.data() + panel * weight.panel_elements());
    }
    weight.data = storage.data();
    return storage;
}

void test_linear(const Kernels& kernels, bool is_fused) {
    for (const auto& [rows, outputs, inputs, shards] :
         {std::array<int64_t, 4>{1, 1, 1, 1}, {1, 16, 64, 4}, {7, 33, 50, 4}, {13, 100, 37, 2}, {30, 47, 128, 1}}) {
        Weight weight = make_weight(outputs, inputs, shards);
        const auto plain = random_floats(outputs * inputs);
        const auto storage = packed(kernels, plain, weight, false);
        auto x = random_floats(rows * (inputs + 1));  // one more float a row, which is finite
        std::vector<float> dense, out(size_t(rows * outputs)), expected(out.size());
        for (int64_t row = 0; row < rows; ++row)
            dense.insert(dense.end(), x.begin() + row * (inputs + 1), x.begin() + row * (inputs + 1) + inputs);
        kernels.linear(x.data(), inputs + 1, rows, weight, 0, weight.num_panels(), {out.data(), DType::kFloat32, outputs});
        serial::linear(dense.data(), plain.data(), rows, outputs, inputs, weight.bounds, shards, expected.data());
        for (size_t i = 0; i < out.size(); ++i) check("linear", out[i], expected[i], is_fused ? 0 : 1e-4);
    }
}

void test_experts(const Kernels& kernels) {
    const int64_t hidden = 100, inner = 70, num_experts = 3, stride = 128;  // 7 panels: units of 4 and of 3
    auto x = random_floats(hidden + 1);
    std::vector<serial::Expert> chosen;
    std::vector<std::vector<float>> kept;
    Weight down = make_weight(hidden, inner, 4), up = make_weight(2 * inner, hidden, 1);
    const int64_t row = 0, panels = down.num_panels();
    std::vector<float> sums(size_t(panels * down.num_shards * kPanel)), out(static_cast<size_t>(hidden)), expected(out);
    for (int64_t expert = 0; expert < num_experts; ++expert) {
        kept.push_back(random_floats(2 * inner * hidden));
        kept.push_back(random_floats(inner * hidden));
        const float factor = 0.25f * float(expert + 1);
        chosen.push_back({(kept.end() - 2)->data(), (kept.end() - 1)->data(), factor});
        const auto up_storage = packed(kernels, *(kept.end() - 2), up, true);
        const auto down_storage = packed(kernels, *(kept.end() - 1), down, false);
        std::vector<float> activations(stride, 0.0f);
        kernels.gate_up(x.data(), hidden + 1, &row, 1, up, 0, (inner + kPanel - 1) / kPanel, DType::kFloat32,
                        activations.data(), stride);
        for (int64_t first = 0; first < panels; first += kMostDownPanels)
            kernels.down(activations.data(), stride, &row, &factor, 1, down, first,
                         std::min(panels, first + kMostDownPanels), &sums[size_t(first * down.num_shards * kPanel)]);
    }
    for (int64_t first = 0; first < panels; first += kMostDownPanels)
        kernels.combine(&sums[size_t(first * down.num_shards * kPanel)], 1, down, first,
                        std::min(panels, first + kMostDownPanels), {out.data(), DType::kFloat32, hidden});
    serial::experts(x.data(), chosen, hidden, inner, down.bounds, down.num_shards, expected.data());
    for (size_t i = 0; i < out.size(); ++i) check("experts", out[i], expected[i], 2e-5 * (1 + std::fabs(expected[i])) * 10);
}

void test_delta(const Kernels& kernels, bool is_fused) {
    for (const auto& [tokens, key_dim, value_dim] :
         {std::array<int64_t, 3>{1, 16, 32}, {5, 24, 8}, {9, 33, 77}, {70, 128, 128}}) {
        auto q = random_floats(tokens * key_dim), k = random_floats(tokens * key_dim);
        for (float& value : q) value /= float(key_dim);
        for (float& value : k) value /= std::sqrt(float(key_dim));
        const auto v = random_floats(tokens * value_dim);
        const std::vector<float> decay(size_t(tokens), 0.9f), beta(size_t(tokens), 0.5f);
        const auto start = random_floats(key_dim * value_dim);
        auto state = start, expected_state = start;
        std::vector<float> out(v.size()), expected(v.size());
        DeltaHead head{q.data(), k.data(), v.data(), key_dim, value_dim, decay.data(), beta.data(), 1,
                       out.data(), state.data(), tokens, key_dim, value_dim};
        for (int64_t column = 0; column < value_dim; column += 32)
            kernels.delta(head, column, std::min(value_dim, column + 32));
        head.out = expected.data(), head.state = expected_state.data();
        serial::delta(head);
        for (size_t i = 0; i < out.size(); ++i) check("delta", out[i], expected[i], is_fused ? 0 : 1e-4);
        for (size_t i = 0; i < state.size(); ++i) check("state", state[i], expected_state[i], is_fused ? 0 : 1e-4);
    }
}

void test_attention(const Kernels& kernels) {
    for (const auto& [head_dim, page_size, first, rows] :
         {std::array<int64_t, 4>{16, 16, 0, 5}, {40, 7, 61, 9}, {64, 64, 130, 1}, {100, 1, 0, 70}}) {
        const int64_t tokens = first + rows, heads = 2, pages = (tokens + page_size - 1) / page_size;
        std::vector<int64_t> table, positions;
        for (int64_t page = 0; page < pages; ++page) table.push_back(pages - 1 - page);
        for (int64_t row = 0; row < rows; ++row) positions.push_back(first + row);
        const auto queries = random_floats(rows * head_dim);
        auto keys = random_floats(pages * page_size * heads * head_dim), values = random_floats(int64_t(keys.size()));
        std::vector<double> ordered_keys, ordered_values, expected(static_cast<size_t>(head_dim));
        for (int64_t token = 0; token < tokens; ++token) {
            const int64_t place = table[size_t(token / page_size)] * page_size + token % page_size;
            const auto at = (place * heads + 1) * head_dim;
            ordered_keys.insert(ordered_keys.end(), keys.begin() + at, keys.begin() + at + head_dim);
            ordered_values.insert(ordered_values.end(), values.begin() + at, values.begin() + at + head_dim);
        }
        for (int64_t token = tokens; token < pages * page_size; ++token)  // what nobody may read
            keys[size_t((table[size_t(token / page_size)] * page_size + token % page_size) * heads * head_dim)] = NAN;
        std::vector<float> out(queries.size()), scratch(size_t(attend_scratch(rows, head_dim)), NAN);
        const float scale = 1 / std::sqrt(float(head_dim));
        const Attend call{queries.data(), out.data(), positions.data(), rows, head_dim, scale, keys.data() + head_dim,
                          values.data() + head_dim, DType::kFloat32, heads * head_dim, page_size, table.data(),
                          scratch.data()};
        kernels.attend(call);
        for (int64_t row = 0; row < rows; ++row) {
            const std::vector<double> query(queries.begin() + row * head_dim, queries.begin() + (row + 1) * head_dim);
            serial::attend(query.data(), positions[size_t(row)], ordered_keys.data(), ordered_values.data(), head_dim,
                           double(scale), expected.data());
            for (int64_t i = 0; i < head_dim; ++i)
                check("attention", double(out[size_t(row * head_dim + i)]), expected[size_t(i)], 2e-5);
        }
        const int64_t last = table[size_t((tokens - 1) / page_size)] * page_size + (tokens - 1) % page_size;
        keys[size_t((last * heads + 1) * head_dim)] = NAN;  // which the last row alone sees
        values[size_t((last * heads + 1) * head_dim)] = INFINITY;
        const auto before = out;
        kernels.attend(call);
        for (size_t i = 0; i < size_t((rows - 1) * head_dim); ++i) check("later token", out[i], before[i], 0);
    }
}

void test_norm(const Kernels& kernels) {
    for (const int64_t width : {1, 15, 16, 60, 257}) {
        const auto hidden = random_floats(width), residual = random_floats(width), scale = random_floats(width);
        std::vector<float> sum(hidden.size()), normed(hidden.size());
        std::vector<double> values, scales(scale.begin(), scale.end()), expected(hidden.size());
        for (size_t i = 0; i < hidden.size(); ++i) values.push_back(double(hidden[i] + residual[i]));
        kernels.add_norm({const_cast<float*>(hidden.data()), DType::kFloat32, width},
                         {const_cast<float*>(residual.data()), DType::kFloat32, width},
                         {sum.data(), DType::kFloat32, width}, 0, width, {scale.data(), 1e-6f}, DType::kFloat32,
                         normed.data());
        serial::rms_norm(values.data(), scales.data(), width, double(1e-6f), expected.data());
        for (size_t i = 0; i < normed.size(); ++i) {
            check("sum", double(sum[i]), values[i], 0);
            check("norm", double(normed[i]), expected[i], 1e-6 * (1 + std::fabs(expected[i])));
        }
    }
}

}  // namespace

#if defined(WIDE)
namespace splitrank::cpu {
extern const Kernels kernels_avx512;  // compiled for this machine, with its lanes
}
#endif

namespace {

void test(const Kernels& kernels, bool is_fused) {
    test_linear(kernels, is_fused);
    test_experts(kernels);
    test_delta(kernels, is_fused);
    test_attention(kernels);
    test_norm(kernels);
}

}  // namespace

int main() {
    for (auto* set = begin_instruction_sets(); set != end_instruction_sets(); ++set)
        test(*set->kernels, std::strcmp(set->name, "baseline") != 0);
#if defined(WIDE)
    test(kernels_avx512, true);
#endif
    std::printf("{\"checked\": %ld, \"wrong\": %ld}\n", num_checked, num_wrong);
    return num_wrong != 0;
}
