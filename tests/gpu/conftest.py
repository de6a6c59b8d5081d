"""Tests on GPUs: ``pytest -m gpu``. Where there are too few, or no module was built, they are skipped and say so."""

import shutil
import subprocess
import sysconfig
from importlib.machinery import ExtensionFileLoader
from importlib.util import module_from_spec, spec_from_file_location
from pathlib import Path
from typing import Any

import pytest
import torch

ROOT = Path(__file__).parents[2]
COMPILE_LIMIT_S = 400


@pytest.fixture(autouse=True)
def _needed_gpus(request: pytest.FixtureRequest) -> None:
    marker = request.node.get_closest_marker("gpu")
    needed = marker.kwargs.get("count", 1) if marker else 0
    if torch.cuda.device_count() < needed:
        pytest.skip(f"needs {needed} GPUs, this machine has {torch.cuda.device_count()}")


@pytest.fixture(scope="session")
def all_ranks(tmp_path_factory: pytest.TempPathFactory) -> Any:
    """The module that plays all ranks in one kernel (all_ranks.cu), compiled here."""
    if not torch.cuda.is_available():
        pytest.skip("needs 1 GPU, this machine has 0")
    nvcc = shutil.which("nvcc") or "/usr/local/cuda/bin/nvcc"
    if not Path(nvcc).is_file():
        pytest.skip("no nvcc to compile all_ranks.cu")
    import pybind11

    file = tmp_path_factory.mktemp("all_ranks") / "all_ranks.so"
    gpu = ROOT / "csrc/quick_reduce/gpu"
    includes = [ROOT / "csrc", pybind11.get_include(), sysconfig.get_path("include")]
    command = [
        nvcc,
        "-std=c++17",
        "-O3",
        "-fmad=false",
        "-gencode=arch=compute_90,code=sm_90",
        "-shared",
        "--split-compile=0",
    ]
    command += ["-Xcompiler", "-fPIC,-fvisibility=hidden", *(f"-I{folder}" for folder in includes), "-o", str(file)]
    command += [str(ROOT / "tests/gpu/all_ranks.cu"), *(str(source) for source in gpu.glob("*.cc"))]
    done = subprocess.run(command, capture_output=True, text=True, timeout=COMPILE_LIMIT_S)
    assert done.returncode == 0, done.stderr
    loader = ExtensionFileLoader("all_ranks", str(file))
    spec = spec_from_file_location("all_ranks", file, loader=loader)
    assert spec is not None
    module = module_from_spec(spec)
    loader.exec_module(module)
    return module
