"""Kernels are compiled once for what decides them; without a GPU the compiling process fails, and the rank goes on."""

import json
from pathlib import Path

import msgspec
import pytest
import triton

from scripts.bench_gpu import config_35b
from splitrank.serving.protocol.messages import LaunchSpec
from splitrank.serving.rank.kernel_compiler import KernelCompiler, stamp
from tests.support.stage_runner import launch_spec

GPU = "NVIDIA H200"


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
    compiler = KernelCompiler(spec, 0, GPU)
    assert compiler._popen is None
    compiler.wait()


def test_a_compiler_that_fails_leaves_no_stamp(spec: LaunchSpec) -> None:
    """On a GPU machine, one that is killed."""
    compiler = KernelCompiler(spec, 0, GPU)
    assert compiler._popen is not None
    compiler._popen.kill()
    compiler.wait()
    assert not stamp(spec, 0, GPU).exists()
