// From (dtype, codec, algorithm, world size) to a kernel: every combination is instantiated by whoever asks for one.
#pragma once

#include "kernels.h"

namespace splitrank::quick_reduce {

#ifdef QR_WHOLE_WORDS
static_assert(gpu::kWaveSize == kTaggedWave);  // places are cut for it
#endif

template <class Work>
const void* kernel_address() {
    return reinterpret_cast<const void*>(&all_reduce_kernel<Work>);
}

template <class Type, class Codec, int W>
const void* kernel_with_codec(Algorithm algorithm) {
    using Executor = CodedExecutor<Type, Codec, W>;
    if (algorithm == Algorithm::kTwoShot) return kernel_address<TwoShotWork<Executor, Type, Codec, W>>();
    if constexpr (kHasOneShot<Codec, W>) {
        if (algorithm == Algorithm::kOneShot) return kernel_address<OneShotWork<Executor, Type, Codec, W>>();
#ifdef QR_WHOLE_WORDS
        if (algorithm == Algorithm::kTagged) return kernel_address<TaggedWork<Executor, Type, Codec, W>>();
#endif
    }
    return nullptr;
}

template <class Type, int W>
const void* kernel_of_type(CodecKind codec, Algorithm algorithm) {
    using Raw = RawExecutor<Type, W>;
    if (algorithm == Algorithm::kRegistered) return kernel_address<RegisteredWork<Raw, Type, W>>();
    switch (codec) {
        case CodecKind::kNone: return kernel_with_codec<Type, CodecNone<Type>, W>(algorithm);
        case CodecKind::kInt8: return kernel_with_codec<Type, CodecInt8<Type>, W>(algorithm);
        case CodecKind::kInt6: return kernel_with_codec<Type, CodecInt6<Type>, W>(algorithm);
        case CodecKind::kInt4: return kernel_with_codec<Type, CodecInt4<Type>, W>(algorithm);
    }
    return nullptr;
}

template <class Type>
const void* kernel_of_world(uint32_t world_size, CodecKind codec, Algorithm algorithm) {
    switch (world_size) {
        case 2: return kernel_of_type<Type, 2>(codec, algorithm);
        case 4: return kernel_of_type<Type, 4>(codec, algorithm);
        case 8: return kernel_of_type<Type, 8>(codec, algorithm);
        default: return nullptr;
    }
}

// One translation unit a type.
extern template const void* kernel_of_world<Float32>(uint32_t, CodecKind, Algorithm);
extern template const void* kernel_of_world<Bfloat16>(uint32_t, CodecKind, Algorithm);
extern template const void* kernel_of_world<Float16>(uint32_t, CodecKind, Algorithm);

}  // namespace splitrank::quick_reduce
