# Debian's headers and runtime (libamdhip64-dev); its own package file asks for a compiler of ROCm's.
find_path(HIP_STUB_INCLUDE hip/hip_runtime_api.h REQUIRED)
find_library(HIP_STUB_RUNTIME amdhip64 REQUIRED)
add_library(hip::host INTERFACE IMPORTED)
set_target_properties(hip::host PROPERTIES
    INTERFACE_INCLUDE_DIRECTORIES ${HIP_STUB_INCLUDE}
    INTERFACE_COMPILE_DEFINITIONS __HIP_PLATFORM_AMD__=1
    INTERFACE_LINK_LIBRARIES ${HIP_STUB_RUNTIME})
