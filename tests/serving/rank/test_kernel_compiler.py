"""Kernels are compiled once for what decides them; without a GPU the compiling process fails, and the rank goes on."""

import json
import os
import subprocess
import sys
from pathlib import Path

import msgspec
import pytest
import triton
from triton.backends.compiler import GPUTarget

from scripts.bench_gpu import config_35b
from splitrank.serving.protocol.messages import LaunchSpec
from splitrank.serving.rank.kernel_compiler import KernelCompiler, stamp
from tests.support.stage_runner import launch_spec

GPU, HOPPER = "NVIDIA H200", GPUTarget("cuda", 90, 32)


@pytest.fixture
def spec(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> LaunchSpec:
    monkeypatch.setattr(triton.knobs.cache, "dir", str(tmp_path / "cache"))
    (tmp_path / "cache").mkdir()
    (tmp_path / "config.json").write_text(json.dumps(config_35b()))
    return launch_spec(tmp_path, tmp_path, device="cuda", devices=(0,), dtype="bfloat16", max_running_requests=4)


def test_a_stamp_is_of_what_decides_the_kernels(spec: LaunchSpec) -> None:
    own = stamp(spec, 0, GPU)
    assert stamp(spec, 0, GPU) == own
    assert stamp(msgspec.structs.replace(spec, num_pages=7, seed=3), 0, GPU) == own
    others = {stamp(msgspec.structs.replace(spec, max_running_requests=5), 0, GPU), stamp(spec, 0, "NVIDIA H100")}
    assert len(others | {own}) == 3


def test_nothing_is_compiled_twice(spec: LaunchSpec) -> None:
    stamp(spec, 0, GPU).touch()
    compiler = KernelCompiler(spec, 0, GPU, HOPPER)
    assert compiler._popen is None
    compiler.wait()


def test_a_compiler_that_fails_leaves_no_stamp(spec: LaunchSpec) -> None:
    """On a GPU machine, one that is killed."""
    compiler = KernelCompiler(spec, 0, GPU, HOPPER)
    assert compiler._popen is not None
    compiler._popen.kill()
    compiler.wait()
    assert not stamp(spec, 0, GPU).exists()


COMPILES = """
import sys
from types import SimpleNamespace

import torch
from triton.backends.compiler import GPUTarget
from triton.runtime import driver

from splitrank.models.ops.gpu.launch import noted_launches
from splitrank.models.ops.gpu.rows import advance_rows
from splitrank.serving.rank.kernel_compiler import compile_all

driver.set_active(SimpleNamespace(launcher_cls=lambda source, metadata: None))
slots, lengths, live = (torch.zeros(count, dtype=torch.int32, device="meta") for count in (4, 8, 1))
with noted_launches() as calls:
    advance_rows(slots, lengths, live)
assert len(calls) == 1
sys.exit(compile_all(calls, GPUTarget("cuda", 90, 32), 1))
"""


def test_compiling_asks_nothing_of_the_gpu(tmp_path: Path) -> None:
    """With a driver of Triton's that can only launch: a context in each process would not fit beside a rank."""
    environment = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}
    environment["TRITON_CACHE_DIR"] = str(tmp_path)
    subprocess.run([sys.executable, "-c", COMPILES], env=environment, check=True)
    assert len(list(tmp_path.rglob("*.cubin"))) == 1
