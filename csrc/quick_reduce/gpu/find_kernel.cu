#include "dispatch.h"

namespace splitrank::quick_reduce {

const void* find_kernel(DType dtype, uint32_t world_size, CodecKind codec, Algorithm algorithm) {
    switch (dtype) {
        case DType::kFloat32: return kernel_of_world<Float32>(world_size, codec, algorithm);
        case DType::kBfloat16: return kernel_of_world<Bfloat16>(world_size, codec, algorithm);
        case DType::kFloat16: return kernel_of_world<Float16>(world_size, codec, algorithm);
    }
    return nullptr;
}

}  // namespace splitrank::quick_reduce
