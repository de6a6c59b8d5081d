#include "dispatch.h"

namespace splitrank::quick_reduce {

template const void* kernel_of_world<Float32>(uint32_t, CodecKind, Algorithm);

}  // namespace splitrank::quick_reduce
