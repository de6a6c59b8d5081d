#include "kernel_table.h"

namespace interleaving {

Kernels kernels_3(Protocol protocol) { return kernels_of<3>(protocol); }

}  // namespace interleaving
