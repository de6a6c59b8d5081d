#define quick_reduce quick_reduce_avx2
#define QR_FIND_KERNEL find_kernel_avx2
#include "kernels.inc"
