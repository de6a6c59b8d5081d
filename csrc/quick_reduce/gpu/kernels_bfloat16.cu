#include "dispatch.h"

namespace splitrank::quick_reduce {

template const void* kernel_of_world<Bfloat16>(uint32_t, CodecKind, Algorithm);

}  // namespace splitrank::quick_reduce
