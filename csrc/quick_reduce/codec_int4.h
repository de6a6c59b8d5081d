// INT4: 4 bits an element and 16 a block of 32; see codec_quantised.h.
#pragma once

#include "codec_quantised.h"

namespace splitrank::quick_reduce {

template <class Type>
using CodecInt4 = CodecQuantised<Type, 4, CodecKind::kInt4>;

}  // namespace splitrank::quick_reduce
