// Test module: the ranks of one communicator play a list of calls as the blocks of one kernel on one GPU.
//
// The rows of the grid are the ranks. Nothing but the protocol keeps them in step: a block goes from one call to the next
// on its own, with stalls thrown in, so that ranks and slots run apart as far as the handshake lets them.
#include "bindings/quick_reduce_gpu.h"
#include "quick_reduce/gpu/kernels.h"

namespace py = pybind11;

namespace splitrank::quick_reduce {

// One call on one rank.
struct Played {
    Job job;
    CodecKind codec;
    Algorithm algorithm;
};

template <class Type, class Codec, int W>
QR_DEVICE void play_coded(const Played& call, uint32_t block) {
    using Executor = CodedExecutor<Type, Codec, W>;
    if constexpr (kHasOneShot<Codec, W>) {
        if (call.algorithm == Algorithm::kOneShot)
            return run_block<OneShotWork<Executor, Type, Codec, W>>(call.job, block);
        if (call.algorithm == Algorithm::kTagged)
            return run_once<TaggedWork<Executor, Type, Codec, W>>(call.job, block);
    }
    run_block<TwoShotWork<Executor, Type, Codec, W>>(call.job, block);
}

template <class Type, int W>
QR_DEVICE void play_one(const Played& call, uint32_t block) {
    using Raw = RawExecutor<Type, W>;
    if (call.algorithm == Algorithm::kRegistered) return run_block<RegisteredWork<Raw, Type, W>>(call.job, block);
    switch (call.codec) {
        case CodecKind::kNone: return play_coded<Type, CodecNone<Type>, W>(call, block);
        case CodecKind::kInt8: return play_coded<Type, CodecInt8<Type>, W>(call, block);
        case CodecKind::kInt6: return play_coded<Type, CodecInt6<Type>, W>(call, block);
        case CodecKind::kInt4: return play_coded<Type, CodecInt4<Type>, W>(call, block);
    }
}

QR_DEVICE void stall(uint32_t call, uint32_t longest_ns) {
    if (longest_ns == 0) return;
    uint32_t hash = (call * 8191u + blockIdx.y * 131u + blockIdx.x) * 2654435761u;
    hash ^= hash >> 15;
    const uint64_t until = gpu::now_ns() + (hash % 4 == 0 ? hash % longest_ns : 0);
    while (gpu::now_ns() < until) {}
}

template <class Type, int W>
__global__ void __launch_bounds__(max_threads(W, false)) play(const Played* calls, uint32_t num_calls, uint32_t longest_ns) {
    for (uint32_t call = 0; call < num_calls; ++call) {
        const Played& mine = calls[call * W + blockIdx.y];
        if (blockIdx.x >= mine.job.call.num_slots) continue;
        stall(call, longest_ns);
        play_one<Type, W>(mine, blockIdx.x);
    }
}

template <class Type>
const void* find_play(uint32_t world_size) {
    switch (world_size) {
        case 2: return reinterpret_cast<const void*>(&play<Type, 2>);
        case 4: return reinterpret_cast<const void*>(&play<Type, 4>);
        case 8: return reinterpret_cast<const void*>(&play<Type, 8>);
        default: return nullptr;
    }
}

// The communicator asks for it to know how many blocks fit; here they are the test's.
const void* find_kernel(DType dtype, uint32_t world_size, CodecKind, Algorithm) {
    switch (dtype) {
        case DType::kFloat32: return find_play<Float32>(world_size);
        case DType::kBfloat16: return find_play<Bfloat16>(world_size);
        case DType::kFloat16: return find_play<Float16>(world_size);
    }
    return nullptr;
}

}  // namespace splitrank::quick_reduce

namespace {

using namespace splitrank::quick_reduce;
using splitrank::quick_reduce_gpu::check;
using splitrank::quick_reduce_gpu::Communicator;
using splitrank::quick_reduce_gpu::Tuning;

// A call on one rank as Python gives it.
struct Part {
    uint64_t input;
    uint64_t output;
    uint64_t num_elements;
    uint32_t codec;
    uint32_t algorithm;
    bool is_present;
};

Part to_part(const py::handle& tuple) {
    const auto [input, output, num_elements, codec, algorithm, is_present] =
        tuple.cast<std::tuple<uint64_t, uint64_t, uint64_t, uint32_t, uint32_t, bool>>();
    return {input, output, num_elements, codec, algorithm, is_present};
}

// `calls`: for each call a list of (input, output, num_elements, codec, algorithm, is_present) by rank.
void play_calls(const std::vector<Communicator*>& ranks, const py::list& calls, uint32_t dtype, uint64_t timeout_ns,
                uint64_t stream, uint32_t num_blocks, uint32_t num_threads, uint32_t longest_ns) {
    const uint32_t world_size = uint32_t(ranks.size());
    std::vector<Played> played;
    for (const py::handle& by_rank : calls) {
        const auto parts = by_rank.cast<py::list>();
        for (uint32_t rank = 0; rank < world_size; ++rank) {
            const Part part = to_part(parts[rank]);
            const bool registered = Algorithm(part.algorithm) == Algorithm::kRegistered;
            if (!part.is_present && !registered) {
                played.push_back({});
                continue;
            }
            const Tuning tuning = ranks[rank]->fill_in({num_blocks, num_threads, 2, 1024}, Algorithm(part.algorithm),
                                                       CodecKind(part.codec), part.num_elements * 2);
            played.push_back({ranks[rank]->plan(part.input, part.output, part.num_elements, dtype, part.codec,
                                                part.algorithm, timeout_ns, tuning),
                              CodecKind(part.codec), Algorithm(part.algorithm)});
            if (!part.is_present) played.back() = {};  // captured, for the ranks' tables to agree, and then not played
        }
    }
    std::vector<std::vector<std::string>> inputs;
    for (const Communicator* rank : ranks) inputs.push_back(rank->captured_inputs());
    for (Communicator* rank : ranks) rank->register_inputs(inputs);

    void* on_device = nullptr;
    check(cudaMalloc(&on_device, played.size() * sizeof(Played)), "the calls");
    check(cudaMemcpy(on_device, played.data(), played.size() * sizeof(Played), cudaMemcpyHostToDevice), "the calls");
    uint32_t num_calls = uint32_t(py::len(calls));
    void* arguments[] = {&on_device, &num_calls, &longest_ns};
    const void* kernel = find_kernel(DType(dtype), world_size, CodecKind::kNone, Algorithm::kTwoShot);
    check(cudaLaunchKernel(kernel, dim3(num_blocks, world_size), dim3(num_threads), arguments, 0,
                           reinterpret_cast<cudaStream_t>(stream)),
          "launch");
    const py::gil_scoped_release others_may_run;
    const cudaError_t end = cudaStreamSynchronize(reinterpret_cast<cudaStream_t>(stream));
    (void)cudaFree(on_device);
    check(end, "the calls");
}

}  // namespace

PYBIND11_MODULE(all_ranks, module) {
    splitrank::bindings::bind_gpu_communicator(module);
    module.def("play", &play_calls, py::arg("ranks"), py::arg("calls"), py::arg("dtype"), py::arg("timeout_ns"),
               py::arg("stream"), py::arg("num_blocks"), py::arg("num_threads"), py::arg("longest_ns") = 0);
}
