# CMake asks a ROCm installation for this package before it accepts a HIP compiler. A plain clang needs nothing from it:
# test_hip_module.py gives it csrc/quick_reduce/gpu/hip_prelude.h instead of ROCm's headers.
