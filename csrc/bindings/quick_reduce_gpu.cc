// splitrank._quick_reduce_gpu, for CUDA or HIP. Tensors come as addresses: comm/quick_reduce.py has checked what they are.
#include "quick_reduce_gpu.h"

PYBIND11_MODULE(_quick_reduce_gpu, module) { splitrank::bindings::bind_gpu_communicator(module); }
