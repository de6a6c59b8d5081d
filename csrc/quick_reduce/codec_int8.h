// INT8: 8 bits an element and 16 a block of 32; see codec_quantised.h.
#pragma once

#include "codec_quantised.h"

namespace splitrank::quick_reduce {

template <class Type>
using CodecInt8 = CodecQuantised<Type, 8, CodecKind::kInt8>;

}  // namespace splitrank::quick_reduce
