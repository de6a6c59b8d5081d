#include "tuning.h"

namespace splitrank::quick_reduce_gpu {

using namespace quick_reduce;

Tuning tune(Algorithm algorithm, CodecKind codec, uint64_t num_bytes) {
    constexpr uint64_t kKib = 1 << 10, kMib = 1 << 20;
    if (algorithm == Algorithm::kTagged) {
        const bool coded = codec != CodecKind::kNone;
        if (num_bytes <= 256 * kKib) return {128, 128, 1, coded ? 8192u : 2048u};
        if (num_bytes <= 1 * kMib) return {128, coded ? 64u : 192u, 1, 8192};
        return {128, coded && num_bytes <= 16 * kMib ? 128u : 256u, 1, 8192};
    }
    if (num_bytes <= 256 * kKib) return {64, 128, 1, 4096};
    if (num_bytes <= 1 * kMib) return {64, 256, 1, 8192};
    if (algorithm == Algorithm::kRegistered && num_bytes > 16 * kMib) return {64, 1024, 1, 8192};
    if (algorithm == Algorithm::kRegistered && num_bytes > 4 * kMib) return {128, 512, 1, 8192};
    if (num_bytes <= 16 * kMib) return {128, 256, 1, 8192};
    return {128, 512, 1, 8192};
}

}  // namespace splitrank::quick_reduce_gpu
