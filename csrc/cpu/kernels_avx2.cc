#define cpu_kernels cpu_kernels_avx2
#define CPU_KERNELS kernels_avx2
#include "kernels.inc"
