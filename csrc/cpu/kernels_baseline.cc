#define cpu_kernels cpu_kernels_baseline
#define CPU_KERNELS kernels_baseline
#include "kernels.inc"
