#include "kernel_table.h"

namespace interleaving {

Kernels kernels_8(Protocol protocol) { return kernels_of<8>(protocol); }

}  // namespace interleaving
