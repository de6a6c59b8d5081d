#define quick_reduce quick_reduce_avx512
#define QR_FIND_KERNEL find_kernel_avx512
#include "kernels.inc"
