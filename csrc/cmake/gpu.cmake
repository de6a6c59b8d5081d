# splitrank._quick_reduce_gpu, for CUDA or HIP: which one, if any. SPLITRANK_GPU says, or what is found:
# the accelerator of an importable torch, which may be none; else hipcc; else nvcc; else none.
set(SPLITRANK_GPU auto CACHE STRING "Which accelerator to build for: auto, off, cuda or hip")

find_program(SPLITRANK_HIPCC hipcc HINTS ENV ROCM_PATH /opt/rocm PATH_SUFFIXES bin)
find_program(SPLITRANK_NVCC nvcc HINTS ENV CUDACXX ENV CUDA_HOME ENV CUDA_PATH /usr/local/cuda PATH_SUFFIXES bin)

# torch's version.py, without the seconds that importing torch takes.
set(ask_torch "
import importlib.util, pathlib, runpy
torch = importlib.util.find_spec('torch')
if torch is not None and torch.origin is not None:
    version = runpy.run_path(str(pathlib.Path(torch.origin).with_name('version.py')))
    print('hip' if version.get('hip') else 'cuda' if version.get('cuda') else 'off', end='')
")

if(NOT SPLITRANK_GPU MATCHES "^(auto|off|cuda|hip)$")
    message(FATAL_ERROR "SPLITRANK_GPU=${SPLITRANK_GPU}: it must be auto, off, cuda or hip")
endif()
set(gpu_target ${SPLITRANK_GPU})
if(SPLITRANK_GPU STREQUAL auto)
    execute_process(COMMAND ${Python_EXECUTABLE} -c "${ask_torch}" OUTPUT_VARIABLE gpu_target ERROR_QUIET)
    if(gpu_target STREQUAL "")
        if(SPLITRANK_HIPCC)
            set(gpu_target hip)
        elseif(SPLITRANK_NVCC)
            set(gpu_target cuda)
        else()
            set(gpu_target off)
        endif()
    endif()
endif()

# A torch for CUDA is installed on machines without nvcc as well: only an explicit wish makes that an error.
set(gpu_missing "")
if(gpu_target STREQUAL cuda AND NOT SPLITRANK_NVCC)
    set(gpu_missing "there is no nvcc")
elseif(gpu_target STREQUAL hip AND NOT SPLITRANK_HIPCC AND NOT CMAKE_HIP_COMPILER)
    set(gpu_missing "there is no hipcc")
elseif(NOT EXISTS ${CMAKE_SOURCE_DIR}/bindings/quick_reduce_gpu.cc)
    set(gpu_missing "bindings/quick_reduce_gpu.cc is not there")
endif()

if(gpu_target STREQUAL off)
    message(STATUS "splitrank: no accelerator (SPLITRANK_GPU=${SPLITRANK_GPU})")
elseif(gpu_missing AND SPLITRANK_GPU STREQUAL auto)
    message(STATUS "splitrank: no module for ${gpu_target}: ${gpu_missing}")
elseif(gpu_missing)
    message(FATAL_ERROR "SPLITRANK_GPU=${SPLITRANK_GPU}: ${gpu_missing}")
else()
    message(STATUS "splitrank: a module for ${gpu_target} (SPLITRANK_GPU=${SPLITRANK_GPU})")
    file(GLOB gpu_kernels CONFIGURE_DEPENDS
        ${CMAKE_SOURCE_DIR}/quick_reduce/gpu/*.cu ${CMAKE_SOURCE_DIR}/stage_mailbox/gpu/*.cu)
    file(GLOB gpu_host CONFIGURE_DEPENDS
        ${CMAKE_SOURCE_DIR}/quick_reduce/gpu/*.cc ${CMAKE_SOURCE_DIR}/stage_mailbox/gpu/*.cc)
    list(APPEND gpu_host ${CMAKE_SOURCE_DIR}/bindings/quick_reduce_gpu.cc)
    include(cmake/${gpu_target}.cmake)
    # No -O3 here: a release has it, and another build could not choose, since a target's options come last.
    target_compile_options(_quick_reduce_gpu PRIVATE "$<$<COMPILE_LANGUAGE:CXX>:-ffp-contract=off;-Wall;-Wextra>")
    install(TARGETS _quick_reduce_gpu LIBRARY DESTINATION splitrank)
endif()
