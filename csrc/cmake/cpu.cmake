# splitrank._quick_reduce_cpu
if(NOT CMAKE_SYSTEM_PROCESSOR MATCHES "^(x86_64|AMD64|amd64)$")
    message(FATAL_ERROR "splitrank: the CPU's quick all-reduce is written for x86-64, not ${CMAKE_SYSTEM_PROCESSOR}")
endif()

# What this machine cannot run must compile, but need not be fast where only this machine will run it (scripts/setup).
set(SPLITRANK_FAST_ON all CACHE STRING "Machines whose instruction sets are optimised for: all, or this one alone")
if(NOT SPLITRANK_FAST_ON MATCHES "^(all|this)$")
    message(FATAL_ERROR "SPLITRANK_FAST_ON=${SPLITRANK_FAST_ON}: it must be all or this")
endif()
set(avx512_options -mavx512f -mavx512bw -mavx512dq -mavx512vl -mprefer-vector-width=512)
if(SPLITRANK_FAST_ON STREQUAL this)
    file(STRINGS /proc/cpuinfo has_avx512 REGEX "^flags.* avx512vl" LIMIT_COUNT 1)
    if(NOT has_avx512)
        list(APPEND avx512_options -O1)
    endif()
endif()

set(cpu_dir ${CMAKE_SOURCE_DIR}/quick_reduce/cpu)
pybind11_add_module(_quick_reduce_cpu MODULE NO_EXTRAS
    ${CMAKE_SOURCE_DIR}/bindings/quick_reduce_cpu.cc
    ${cpu_dir}/communicator.cc
    ${cpu_dir}/handle.cc
    ${cpu_dir}/instruction_sets.cc
    ${cpu_dir}/kernels_avx2.cc
    ${cpu_dir}/kernels_avx512.cc
    ${cpu_dir}/kernels_baseline.cc
    ${cpu_dir}/shared_memory.cc
    ${CMAKE_SOURCE_DIR}/stage_mailbox/cpu/host_mailbox.cc)
target_compile_options(_quick_reduce_cpu PRIVATE -O3 -ffp-contract=off -Wall -Wextra)

# No link-time optimisation: it would inline across instruction sets. instruction_sets.cc asks for the same features.
set_target_properties(_quick_reduce_cpu PROPERTIES INTERPROCEDURAL_OPTIMIZATION OFF)
# Only for machines from before 2013: a third of the compiler's time.
set_source_files_properties(${cpu_dir}/kernels_baseline.cc PROPERTIES COMPILE_OPTIONS "-O1")
set_source_files_properties(${cpu_dir}/kernels_avx2.cc PROPERTIES COMPILE_OPTIONS "-mavx2")
set_source_files_properties(${cpu_dir}/kernels_avx512.cc PROPERTIES COMPILE_OPTIONS "${avx512_options}")

install(TARGETS _quick_reduce_cpu LIBRARY DESTINATION splitrank)

# splitrank._cpu_ops
set(ops_dir ${CMAKE_SOURCE_DIR}/cpu)
find_package(Threads REQUIRED)
pybind11_add_module(_cpu_ops MODULE NO_EXTRAS
    ${CMAKE_SOURCE_DIR}/bindings/cpu_ops.cc
    ${ops_dir}/attention/driver.cc
    ${ops_dir}/delta/driver.cc
    ${ops_dir}/experts/driver.cc
    ${ops_dir}/instruction_sets.cc
    ${ops_dir}/kernels_avx2.cc
    ${ops_dir}/kernels_avx512.cc
    ${ops_dir}/kernels_baseline.cc
    ${ops_dir}/layers/driver.cc
    ${ops_dir}/linear/driver.cc
    ${ops_dir}/sampling/driver.cc
    ${ops_dir}/threads/pool.cc)
# No contraction: a multiply-add is written where one is meant, so that tiles of all sizes have the same bits.
target_compile_options(_cpu_ops PRIVATE -O3 -ffp-contract=off -Wall -Wextra)
target_link_libraries(_cpu_ops PRIVATE Threads::Threads)
set_target_properties(_cpu_ops PROPERTIES INTERPROCEDURAL_OPTIMIZATION OFF)
set_source_files_properties(${ops_dir}/kernels_baseline.cc PROPERTIES COMPILE_OPTIONS "-O1") # as above
set_source_files_properties(${ops_dir}/kernels_avx2.cc PROPERTIES COMPILE_OPTIONS "-mavx2;-mfma")
set_source_files_properties(${ops_dir}/kernels_avx512.cc PROPERTIES COMPILE_OPTIONS "-mfma;${avx512_options}")

# They only take arguments apart; pybind11 at -O3 takes as long to compile as the kernels.
set_source_files_properties(${CMAKE_SOURCE_DIR}/bindings/cpu_ops.cc ${CMAKE_SOURCE_DIR}/bindings/quick_reduce_cpu.cc
    PROPERTIES COMPILE_OPTIONS "-O1")

install(TARGETS _cpu_ops LIBRARY DESTINATION splitrank)
