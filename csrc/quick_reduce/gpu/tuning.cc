#include "tuning.h"

namespace splitrank::quick_reduce_gpu {

using namespace quick_reduce;

Tuning tune(Algorithm algorithm, CodecKind, uint64_t num_bytes) {
    constexpr uint64_t kKib = 1 << 10, kMib = 1 << 20;
    if (algorithm == Algorithm::kTagged) return {128, 256, 1, 2048};
    if (num_bytes <= 256 * kKib) return {64, 128, 1, 4096};
    if (num_bytes <= 1 * kMib) return {64, 256, 1, 8192};
    if (algorithm == Algorithm::kRegistered && num_bytes > 16 * kMib) return {64, 1024, 1, 8192};
    if (algorithm == Algorithm::kRegistered && num_bytes > 4 * kMib) return {128, 512, 1, 8192};
    if (num_bytes <= 16 * kMib) return {128, 256, 1, 8192};
    return {128, 512, 1, 8192};
}

}  // namespace splitrank::quick_reduce_gpu
