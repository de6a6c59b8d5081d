"""splitrank._quick_reduce_gpu for CUDA compiles where there is an nvcc. What it computes is tests/gpu's."""

import shutil
import sys
from pathlib import Path

import pytest

from tests.csrc.programs import PROOF
from tests.csrc.test_hip_module import CSRC, python, run

NVCC = shutil.which("nvcc") or "/usr/local/cuda/bin/nvcc"

pytestmark = [*PROOF, pytest.mark.skipif(not Path(NVCC).is_file(), reason="needs nvcc")]


@pytest.mark.full  # else by scripts/check_gpu, and by an installation beside a torch for CUDA
def test_it_is_built_and_imports(tmp_path: Path) -> None:
    tools = Path(sys.executable).parent
    settings = {
        "CMAKE_MAKE_PROGRAM": shutil.which("ninja", path=str(tools)) or "ninja",
        "CMAKE_CXX_FLAGS_RELEASE": "-O0",
        "Python_EXECUTABLE": sys.executable,
        "pybind11_DIR": run(sys.executable, "-m", "pybind11", "--cmakedir").strip(),
        "SPLITRANK_GPU": "cuda",
    }
    cmake = shutil.which("cmake", path=str(tools)) or "cmake"
    run(cmake, "-G", "Ninja", "-S", CSRC, "-B", tmp_path, *(f"-D{key}={value}" for key, value in settings.items()))
    run(tools / "ninja", "-C", tmp_path, "-j2", "_quick_reduce_gpu")
    (module,) = tmp_path.glob("_quick_reduce_gpu*.so")
    assert python(module, "import _quick_reduce_gpu as gpu; print(gpu.TARGET)").strip() == "cuda"
