#define quick_reduce quick_reduce_baseline
#define QR_FIND_KERNEL find_kernel_baseline
#include "kernels.inc"
