#include "kernels.h"

#include <cstdio>
#include <cstdlib>

namespace interleaving {

Kernels kernels_2(Protocol);
Kernels kernels_3(Protocol);
Kernels kernels_4(Protocol);
Kernels kernels_8(Protocol);

Kernels kernels(Protocol protocol, uint32_t world_size) {
    switch (world_size) {
        case 2: return kernels_2(protocol);
        case 3: return kernels_3(protocol);
#ifndef SMALL_TABLE
        case 4: return kernels_4(protocol);
        case 8: return kernels_8(protocol);
#endif
    }
    std::fprintf(stderr, "no kernels for %u ranks\n", world_size);
    std::exit(2);
}

}  // namespace interleaving
