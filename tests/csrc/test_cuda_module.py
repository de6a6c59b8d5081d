"""splitrank._quick_reduce_gpu for CUDA compiles where there is an nvcc. What it computes is tests/gpu's."""

import shutil
from pathlib import Path

import pytest

from tests.csrc.programs import PROOF
from tests.csrc.test_hip_module import CSRC, built_module, python

NVCC = shutil.which("nvcc") or "/usr/local/cuda/bin/nvcc"

pytestmark = [*PROOF, pytest.mark.skipif(not Path(NVCC).is_file(), reason="needs nvcc")]


@pytest.mark.full  # else by scripts/check_gpu, and by an installation beside a torch for CUDA
def test_it_is_built_and_imports(tmp_path: Path) -> None:
    module = built_module(CSRC, tmp_path, {"SPLITRANK_GPU": "cuda"})
    assert python(module, "import _quick_reduce_gpu as gpu; print(gpu.TARGET)").strip() == "cuda"
