#include <algorithm>
#include <cstring>

#include "../operations.h"

namespace splitrank::cpu {

namespace {

constexpr int64_t kInputsInCache = 48 * 1024;  // floats of a block of rows: 192 KiB stay in the second cache
constexpr int64_t kRowsOfUnit = 8;

}  // namespace

Operations::Inputs Operations::make_inputs(int64_t num_rows, int64_t width) {
    const int64_t stride = ceil_div(width, kPanel) * kPanel + kPanel;
    return {inputs_.floats(num_rows * stride), stride};
}

Operations::Inputs Operations::normed(const Stream& stream) {
    const Inputs inputs = make_inputs(stream.num_rows, stream.width);
    run_rows(stream.num_rows, kRowsOfUnit, [&](int64_t row, int) {
        float* to = inputs.rows + row * inputs.stride;
        kernels_.add_norm(stream.hidden, stream.residual, stream.residual_out, row, stream.width, stream.norm,
                          stream.residual.dtype, to);
        std::fill(to + stream.width, to + inputs.stride, 0.0f);
    });
    return inputs;
}

Operations::Inputs Operations::converted(const Values& x, int64_t num_rows, int64_t width) {
    const Inputs inputs = make_inputs(num_rows, width);
    run_rows(num_rows, kRowsOfUnit, [&](int64_t row, int) {
        float* to = inputs.rows + row * inputs.stride;
        kernels_.convert(x, row, 0, width, to);
        std::fill(to + width, to + inputs.stride, 0.0f);
    });
    return inputs;
}

void Operations::linear(const Inputs& inputs, int64_t num_rows, const Weight& weight, const Values& out) {
    if (!weight.is_packed) return plain_linear(inputs, num_rows, weight, out);
    const int64_t num_panels = weight.num_panels();
    const int64_t rows = std::max<int64_t>(48, kInputsInCache / inputs.stride / 24 * 24);
    const int64_t num_blocks = ceil_div(num_rows, rows);
    const int64_t wanted = ceil_div(num_panels * num_blocks, int64_t(8) * pool_.num_threads());
    // One row ends sooner with small units: its threads wait for the last of them.
    const int64_t panels = num_rows == 1 ? std::clamp<int64_t>(wanted / 4 * 4, 4, 8)
                                         : std::clamp<int64_t>(wanted / 2 * 2, 2, 16);
    const int64_t num_groups = ceil_div(num_panels, panels);
    pool_.run(num_blocks * num_groups, [&](int64_t unit, int) {
        const int64_t row = unit / num_groups * rows, panel = unit % num_groups * panels;
        char* rows_of_out = static_cast<char*>(out.data) + row * out.stride * element_bytes(out.dtype);
        const Values part{rows_of_out, out.dtype, out.stride};
        kernels_.linear(inputs.rows + row * inputs.stride, inputs.stride, std::min(rows, num_rows - row), weight, panel,
                        std::min(panel + panels, num_panels), part);
    });
}

void Operations::linear(const Values& x, int64_t num_rows, const Weight& weight, const Values& out) {
    linear(converted(x, num_rows, weight.num_inputs), num_rows, weight, out);
}

void Operations::add_norm_linear(const Stream& stream, const Weight& weight, const Values& out) {
    linear(normed(stream), stream.num_rows, weight, out);
}

void Operations::pack(const void* source, const Weight& weight, bool interleaved, void* packed) {
    const int64_t element = element_bytes(weight.dtype), row_bytes = weight.num_inputs * element;
    const int64_t panel_bytes = weight.panel_elements() * element, half = weight.num_outputs / 2;
    const int64_t num_panels = interleaved ? 2 * ceil_div(half, kPanel) : weight.num_panels();
    pool_.run(num_panels, [&](int64_t panel, int thread) {
        const void* rows[kPanel];
        // A panel that is packed in place overwrites its own rows.
        char* copy = reinterpret_cast<char*>(of_thread_[size_t(thread)].floats(kPanel * weight.num_inputs));
        for (int64_t i = 0; i < kPanel; ++i) {
            int64_t row = panel * kPanel + i, end = weight.num_outputs;
            if (interleaved) {
                row = panel / 2 * kPanel + i;
                end = half;
            }
            const int64_t at = interleaved && panel % 2 ? half + row : row;
            rows[i] = row < end ? std::memcpy(copy + i * row_bytes, static_cast<const char*>(source) + at * row_bytes,
                                              size_t(row_bytes))
                                : nullptr;
        }
        kernels_.pack(rows, weight, static_cast<char*>(packed) + panel * panel_bytes);
    });
}

void Operations::plain_linear(const Inputs& inputs, int64_t num_rows, const Weight& weight, const Values& out) {
    const int64_t row_bytes = weight.num_inputs * element_bytes(weight.dtype);
    pool_.run(weight.num_panels(), [&](int64_t panel, int thread) {
        const void* rows[kPanel];
        for (int64_t i = 0; i < kPanel; ++i) {
            const int64_t row = panel * kPanel + i;
            rows[i] = row < weight.num_outputs ? static_cast<const char*>(weight.data) + row * row_bytes : nullptr;
        }
        float* packed = of_thread_[size_t(thread)].floats(weight.panel_elements());
        kernels_.pack(rows, weight, packed);
        Weight part = weight;
        part.data = packed;
        part.num_outputs = std::min<int64_t>(kPanel, weight.num_outputs - panel * kPanel);
        char* first_column = static_cast<char*>(out.data) + panel * kPanel * element_bytes(out.dtype);
        const Values columns{first_column, out.dtype, out.stride};
        kernels_.linear(inputs.rows, inputs.stride, num_rows, part, 0, 1, columns);
    });
}

}  // namespace splitrank::cpu
