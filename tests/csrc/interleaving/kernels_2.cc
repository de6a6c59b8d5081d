#include "kernel_table.h"

namespace interleaving {

Kernels kernels_2(Protocol protocol) { return kernels_of<2>(protocol); }

}  // namespace interleaving
