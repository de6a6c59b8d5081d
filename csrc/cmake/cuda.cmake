# 90: machine code for sm_90, and PTX that newer GPUs translate.
if(NOT DEFINED CMAKE_CUDA_ARCHITECTURES)
    set(CMAKE_CUDA_ARCHITECTURES 90)
endif()
if(NOT DEFINED CMAKE_CUDA_COMPILER)
    set(CMAKE_CUDA_COMPILER ${SPLITRANK_NVCC})
endif()
enable_language(CUDA)
find_package(CUDAToolkit REQUIRED)
set(CMAKE_CUDA_STANDARD 17)
set(CMAKE_CUDA_STANDARD_REQUIRED ON)

pybind11_add_module(_quick_reduce_gpu MODULE NO_EXTRAS ${gpu_host} ${gpu_kernels})
# -fmad=false: the bits of the CPU. cudart is linked statically: the module imports where no GPU is.
target_compile_options(_quick_reduce_gpu PRIVATE
    "$<$<COMPILE_LANGUAGE:CUDA>:-fmad=false;-O3;--expt-relaxed-constexpr>")
target_link_libraries(_quick_reduce_gpu PRIVATE CUDA::cudart_static)
