# One module for all AMD GPUs that the kernels are checked for.
if(NOT DEFINED CMAKE_HIP_ARCHITECTURES)
    set(CMAKE_HIP_ARCHITECTURES gfx90a gfx942 gfx950)
endif()
# What nvcc includes by itself. A clang without ROCm is given quick_reduce/gpu/hip_prelude.h instead.
set(SPLITRANK_HIP_INCLUDE hip/hip_runtime.h CACHE STRING "Header that comes before all others in HIP sources")
enable_language(HIP)
find_package(hip REQUIRED)
set(CMAKE_HIP_STANDARD 17)
set(CMAKE_HIP_STANDARD_REQUIRED ON)

set_source_files_properties(${gpu_kernels} PROPERTIES LANGUAGE HIP)
pybind11_add_module(_quick_reduce_gpu MODULE NO_EXTRAS ${gpu_host} ${gpu_kernels})
# -ffp-contract=off: the bits of the CPU.
target_compile_options(_quick_reduce_gpu PRIVATE
    "$<$<COMPILE_LANGUAGE:HIP>:-O3;-ffp-contract=off;-include;${SPLITRANK_HIP_INCLUDE}>")
target_compile_definitions(_quick_reduce_gpu PRIVATE SPLITRANK_HIP)
target_link_libraries(_quick_reduce_gpu PRIVATE hip::host)
