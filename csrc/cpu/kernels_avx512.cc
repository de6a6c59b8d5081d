#define cpu_kernels cpu_kernels_avx512
#define CPU_KERNELS kernels_avx512
#include "kernels.inc"
