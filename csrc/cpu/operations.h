// Whole operations of a rank: each cuts its work into units for the pool, and the kernels compute them.
#pragma once

#include <algorithm>
#include <cstdlib>
#include <memory>
#include <string>
#include <variant>
#include <vector>

#include "../quick_reduce/errors.h"
#include "kernels.h"
#include "threads/pool.h"

namespace splitrank::cpu {

// Floats of scratch memory, aligned to a cache line; they grow to the largest call and stay. What they held is lost when
// they grow.
class Scratch {
public:
    float* floats(int64_t count) {
        if (count > size_) {
            size_ = 0;
            memory_.reset();  // first: the old and the new memory are never held both
            memory_.reset(static_cast<float*>(std::aligned_alloc(64, size_t(count + 15) / 16 * 64)));
            if (!memory_)
                throw quick_reduce::OutOfMemory("no room for " + std::to_string(count * 4) + " bytes of scratch memory");
            size_ = count;
        }
        return memory_.get();
    }

private:
    struct Free {
        void operator()(float* memory) const { std::free(memory); }
    };
    std::unique_ptr<float, Free> memory_;
    int64_t size_ = 0;
};

// What add_norm takes and leaves.
struct Stream {
    Values hidden, residual, residual_out;
    int64_t num_rows, width;
    Norm norm;
};

// Rows of one sequence: tokens [row, row + length) at positions from `start`, its slot and pages.
struct Span {
    int64_t row, length, start, slot;
    const int64_t* pages;
};

struct DeltaLayer {
    int64_t key_heads, value_heads, key_dim, value_dim, num_taps;
    const float *taps, *decay_rate, *dt_bias;  // taps [num_taps, C]
    Norm norm;
    Values conv_states;   // [slots, num_taps - 1, C]
    float* delta_states;  // [slots, value heads, key dim, value dim]

    int64_t channels() const { return 2 * key_heads * key_dim + value_heads * value_dim; }
};

struct AttentionLayer {
    int64_t num_heads, num_kv_heads, head_dim, rotary_dim;
    Norm q_norm, k_norm;
    void *keys, *values;  // [pages, page_size, kv heads, head_dim]
    DType dtype;
    int64_t page_size;
};

struct ExpertsLayer {
    int64_t num_experts, top_k, inner, shared_inner;
    Weight router;                 // [E + 1, H]; the last row is the shared expert's gate
    Weight shared_gate_up, shared_down;
    Weight gate_up, down;          // of expert 0; the others follow
    int64_t gate_up_bytes, down_bytes;  // of one expert
};

// A decoder layer of a rank that has no tensor peers.
struct Layer {
    Norm mixer_norm;
    Weight first;  // of the mixer, what gives `projected`
    std::variant<DeltaLayer, AttentionLayer> mixer;
    Weight last;   // of the mixer
    Norm experts_norm;
    ExpertsLayer experts;
};

// The rows of a step.
struct Rows {
    int64_t count, width;
    const std::vector<Span>& spans;
    const int64_t* kv_index;  // [T]
    const float* cos_sin;     // [T, rotary_dim]
};

class Operations {
public:
    Operations(int num_threads, const std::string& instruction_set)
        : set_(find_instruction_set(instruction_set)), kernels_(*set_.kernels), pool_(num_threads) {}

    const char* instruction_set() const { return set_.name; }
    int num_threads() const { return pool_.num_threads(); }
    void pin(const std::vector<int>& cores) { pool_.pin(cores); }

    // x [T, K] -> out [T, N]
    void linear(const Values& x, int64_t num_rows, const Weight& weight, const Values& out);
    void add_norm_linear(const Stream& stream, const Weight& weight, const Values& out);
    // [T, qkv, z, b, a] -> normed and gated [T, value heads * value dim]
    void delta(const Values& projected, int64_t num_rows, const std::vector<Span>& spans, const DeltaLayer& layer,
               const Values& out);
    // [T, q and gate of each head, k, v] -> gated [T, heads * head dim]; kv_index [T]; cos_sin [T, rotary_dim]
    void attention(const Values& projected, int64_t num_rows, const std::vector<Span>& spans, const int64_t* kv_index,
                   const float* cos_sin, const AttentionLayer& layer, const Values& out);
    void experts(const Stream& stream, const ExpertsLayer& layer, const Values& out);
    // Layer by layer; both [T, width], of the layers' dtype, are replaced by what the last layer leaves
    void layers(const std::vector<const Layer*>& layers, const Rows& rows, const Values& hidden, const Values& residual);
    // logits [S, V] -> the first of the largest of each row, and its value: [S]. NaN is larger than all
    void greedy(const float* logits, int64_t num_rows, int64_t num_logits, int64_t* tokens, float* largest);
    // positions [T], frequencies [half] -> cos, then sin, [T, 2 * half]
    void cos_sin(const int64_t* positions, int64_t num_rows, const float* frequencies, int64_t half, float scale,
                 float* out);
    // source [N, K], or with gate rows and up rows in turns of 16; null packs in place
    void pack(const void* source, const Weight& weight, bool interleaved, void* packed);

private:
    // Rows as floats, padded with zeros; from add_norm, or converted.
    struct Inputs {
        float* rows;
        int64_t stride;
    };
    // work(row, thread) of each row, some rows a unit.
    template <class Work>
    void run_rows(int64_t num_rows, int64_t rows_of_unit, const Work& work) {
        pool_.run(ceil_div(num_rows, rows_of_unit), [&](int64_t unit, int thread) {
            const int64_t last = std::min(num_rows, (unit + 1) * rows_of_unit);
            for (int64_t row = unit * rows_of_unit; row < last; ++row) work(row, thread);
        });
    }
    Inputs normed(const Stream& stream);
    Inputs converted(const Values& x, int64_t num_rows, int64_t width);
    Inputs make_inputs(int64_t num_rows, int64_t width);
    void linear(const Inputs& inputs, int64_t num_rows, const Weight& weight, const Values& out);
    void plain_linear(const Inputs& inputs, int64_t num_rows, const Weight& weight, const Values& out);
    void conv_and_gates(const Values& projected, int64_t num_rows, const std::vector<Span>& spans,
                        const DeltaLayer& layer, float* mixed, float* decay, float* beta);
    void queries_and_pages(const Values& projected, int64_t num_rows, const int64_t* kv_index, const float* cos_sin,
                           const AttentionLayer& layer, float* queries);

    const InstructionSet& set_;
    const Kernels& kernels_;
    Pool pool_;
    Scratch inputs_, mixed_, gates_, activations_;
    Scratch projected_, mixer_out_;  // of `layers`
    std::vector<Scratch> of_thread_ = std::vector<Scratch>(size_t(pool_.num_threads()));
};

}  // namespace splitrank::cpu
