#include "kernel_table.h"

namespace interleaving {

Kernels kernels_4(Protocol protocol) { return kernels_of<4>(protocol); }

}  // namespace interleaving
