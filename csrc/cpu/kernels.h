// What the drivers know of the kernels: plain arguments, and a table of functions an instruction set.
//
// A kernel computes a part of an operation on one thread. No bit of an output depends on how the operation is cut into
// parts. Legend: T rows, N outputs, K inputs of a product.
#pragma once

#include <cstdint>
#include <string>

// For functions that kernels and drivers share. Else each instruction set's object might hold a copy, and the linker keeps
// one for all: perhaps the one of AVX-512.
#define SPLITRANK_IN_PLACE __attribute__((always_inline)) inline

namespace splitrank::cpu {

constexpr int kPanel = 16;      // outputs of a weight that lie together
constexpr int kShards = 4;      // virtual shards of a row-parallel product: a multiple of every exact tp
constexpr int kKeyBlock = 64;   // keys of one step of the online softmax, at absolute multiples
constexpr int kMostRows = 8;    // of one tile; a kernel may take fewer at once
constexpr int kMostDownPanels = 4; // of one unit of the experts' down product
constexpr int kMostHead = 1024; // widest head of attention and of the delta rule

enum class DType : uint32_t { kFloat32, kBfloat16 };

SPLITRANK_IN_PLACE int64_t element_bytes(DType dtype) { return dtype == DType::kBfloat16 ? 2 : 4; }
SPLITRANK_IN_PLACE int64_t ceil_div(int64_t a, int64_t b) { return (a + b - 1) / b; }

// A weight [N, K] in panels of 16 outputs. In a panel, the shards one after the other; in a shard, input by input (two
// by two for bfloat16, padded with a zero): 16 weights each.
struct Weight {
    const void* data;
    DType dtype;
    int64_t num_outputs, num_inputs;
    int64_t num_shards;
    int64_t bounds[kShards + 1];  // inputs of shard s: bounds[s] to bounds[s + 1]
    bool is_packed;               // else [N, K] as it was loaded, and panels are packed whenever they are used

    SPLITRANK_IN_PLACE int64_t num_panels() const { return ceil_div(num_outputs, kPanel); }
    // Inputs of a shard as stored.
    SPLITRANK_IN_PLACE int64_t stored(int64_t shard) const {
        const int64_t count = bounds[shard + 1] - bounds[shard];
        return dtype == DType::kBfloat16 ? (count + 1) / 2 * 2 : count;
    }
    SPLITRANK_IN_PLACE int64_t panel_elements() const {
        int64_t inputs = 0;
        for (int64_t shard = 0; shard < num_shards; ++shard) inputs += stored(shard);
        return inputs * kPanel;
    }
};

// Values that are float32 or bfloat16, [T, ...] with `stride` elements between rows.
struct Values {
    void* data;
    DType dtype;
    int64_t stride;
};

struct Norm {
    const float* scale;
    float eps;
};

// What a block of gated delta rule needs of one head; q and k have length 1.
struct DeltaHead {
    const float *q, *k, *v;       // of the first token
    int64_t key_stride, value_stride;
    const float *decay, *beta;    // of the first token
    int64_t head_stride;
    float* out;                   // of the first token, strided like v
    float* state;                 // [key dim, value dim]
    int64_t num_tokens, key_dim, value_dim;
};

// Queries of one kv head that share a context: rows [R, head_dim] of float32, row r at position positions[r].
struct Attend {
    const float* queries;
    float* out;                   // [R, head_dim]
    const int64_t* positions;     // ascending
    int64_t num_rows, head_dim;
    float scale;
    const void *keys, *values;    // pages [pages, page_size, kv heads, head_dim], at this kv head
    DType dtype;
    int64_t token_stride;         // elements between two tokens of a page
    int64_t page_size;
    const int64_t* pages;
    float* scratch;               // attend_scratch floats
};

inline int64_t attend_scratch(int64_t num_rows, int64_t head_dim) {
    const int64_t padded = ceil_div(head_dim, kPanel) * kPanel;
    return kKeyBlock * padded * 2 + num_rows * (kKeyBlock + padded + 2);
}

struct Kernels {
    // Sums of rows x [T, K] with panels [first, last), per shard along the tree -> out; `inputs` has K floats a row and
    // one more that is finite.
    void (*linear)(const float* inputs, int64_t stride, int64_t num_rows, const Weight& weight, int64_t first,
                   int64_t last, const Values& out);
    // gate_up [2I, K] with gate and up panels in turn: silu(gate) * up of chosen rows -> activations [n, I], rounded to
    // `rounded`. Panel pairs [first, last).
    void (*gate_up)(const float* inputs, int64_t stride, const int64_t* rows, int64_t num_rows, const Weight& weight,
                    int64_t first, int64_t last, DType rounded, float* activations, int64_t activation_stride);
    // Adds factor[i] * (activations[i] x down, shard by shard) to sums[rows[i]][shard][outputs of panels [first, last)].
    void (*down)(const float* activations, int64_t stride, const int64_t* rows, const float* factors, int64_t num_rows,
                 const Weight& weight, int64_t first, int64_t last, float* sums);
    // The tree over shards of such sums [T][shards][...], of kMostDownPanels at most -> their columns of out.
    void (*combine)(const float* sums, int64_t num_rows, const Weight& weight, int64_t first, int64_t last,
                    const Values& out);
    // hidden + residual, rounded to residual's dtype -> residual_out; normed and rounded -> normed (floats).
    void (*add_norm)(const Values& hidden, const Values& residual, const Values& residual_out, int64_t row,
                     int64_t width, const Norm& norm, DType rounded, float* normed);
    // values / rms(values) * scale * silu(gate), rounded -> out
    void (*gated_norm)(const float* values, const Values& gate, int64_t row, int64_t gate_offset, int64_t width,
                       const Norm& norm, const Values& out, int64_t out_offset);
    // A head's values, normed and turned by cos, sin [rotary_dim / 2] -> out (floats).
    void (*norm_rotate)(const Values& in, int64_t row, int64_t offset, int64_t width, const Norm& norm,
                        const float* cos_sin, int64_t rotary_dim, float* out);
    void (*convert)(const Values& from, int64_t row, int64_t offset, int64_t width, float* to);
    void (*round)(const float* from, int64_t width, const Values& to, int64_t row, int64_t offset);
    // values * sigmoid(gate) -> out
    void (*gate)(const float* values, const Values& gate, int64_t row, int64_t gate_offset, int64_t width,
                 const Values& out, int64_t out_offset);
    // Convolution and silu of tokens of one sequence, channels [first, last): x [T, ...] and state [taps - 1, C],
    // which advances -> out [T, C] floats
    void (*conv)(const Values& x, int64_t row, int64_t num_tokens, const Values& state, const float* taps,
                 int64_t num_taps, int64_t num_channels, int64_t first, int64_t last, float* out, int64_t out_stride);
    // x / length(x) * factor, in place
    void (*unit)(float* values, int64_t width, float eps, float factor);
    // Columns [first, last) of the value dim.
    void (*delta)(const DeltaHead& head, int64_t first, int64_t last);
    void (*attend)(const Attend& attend);
    // Rows `rows[16]` (null: zeros) of a weight -> one panel.
    void (*pack)(const void* const* rows, const Weight& weight, void* panel);
};

struct InstructionSet {
    const char* name;
    const Kernels* kernels;
};

// Those that this machine can run, the best one last.
const InstructionSet* begin_instruction_sets();
const InstructionSet* end_instruction_sets();
const InstructionSet& find_instruction_set(const std::string& name);  // empty: the best; std::invalid_argument

}  // namespace splitrank::cpu
