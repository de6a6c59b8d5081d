// INT6: 6 bits an element and 16 a block of 32; see codec_quantised.h.
#pragma once

#include "codec_quantised.h"

namespace splitrank::quick_reduce {

template <class Type>
using CodecInt6 = CodecQuantised<Type, 6, CodecKind::kInt6>;

}  // namespace splitrank::quick_reduce
