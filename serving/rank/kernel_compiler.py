"""Compiles the kernels of a rank's steps while its weights are loaded: in processes of their own, one a core.

    python -m splitrank.serving.rank.kernel_compiler --rank R --gpu NAME --target cuda:90:32 <the launch spec as msgpack

One after the other, as the steps first need them, 120 kernels take more than a minute. What is compiled lies in
Triton's cache on disk, where the rank finds it. A kernel that fails to compile fails again in the rank, which reports
it. No process here opens the GPU: beside the rank's weights and pages there is no memory for as many contexts as cores.
"""

import argparse
import hashlib
import logging
import multiprocessing
import os
import subprocess
import sys
import time
from importlib import import_module
from multiprocessing.sharedctypes import Synchronized
from pathlib import Path
from pkgutil import iter_modules

import msgspec
import triton
from triton.backends.compiler import GPUTarget

from splitrank.models.config import read_config
from splitrank.models.ops.gpu import launch as kernels
from splitrank.models.ops.gpu.launch import Call, compile_ahead, compile_only
from splitrank.models.ops.gpu.tiles import load_tiles
from splitrank.serving.launch.machine import usable_cores
from splitrank.serving.launch.processes import exit_with_parent
from splitrank.serving.protocol.messages import LaunchSpec
from splitrank.serving.rank.planned_launches import planned_launches

_KERNELS = Path(kernels.__file__).parent
# Of a launch spec: what decides which kernels a rank needs.
_DECIDE = (
    "dtype", "tp_size", "pp_size", "max_model_len", "max_running_requests", "page_size", "max_prefill_tokens", "exact",
    "prompt_graphs",
)  # fmt: skip


class KernelCompiler:
    """Made when a rank starts. Without a process where all kernels were compiled at an earlier start."""

    def __init__(self, spec: LaunchSpec, rank: int, gpu: str, target: GPUTarget) -> None:
        self._limit_s, self._popen = spec.load_timeout_s, None
        hash_kernels()
        self._stamp = stamp(spec, rank, gpu)
        if not self._stamp.exists():
            command = [sys.executable, "-P", "-m", __name__, "--rank", str(rank), "--gpu", gpu]
            command += ["--target", f"{target.backend}:{target.arch}:{target.warp_size}"]
            self._popen = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=2)
            assert self._popen.stdin is not None
            with self._popen.stdin as stdin:
                stdin.write(msgspec.msgpack.encode(spec))

    def wait(self) -> None:
        """Until the kernels are compiled, within the load limit; without them the rank compiles what it meets."""
        if self._popen is None:
            return
        try:
            if self._popen.wait(self._limit_s) == 0:
                self._stamp.touch()
        except subprocess.TimeoutExpired:
            self._popen.kill()
            self._popen.wait()
        self._popen = None

    def close(self) -> None:
        if self._popen is not None:
            self._popen.kill()
            self._popen.wait()


def stamp(spec: LaunchSpec, rank: int, gpu: str) -> Path:
    """A file in Triton's cache that stands for all kernels of this rank: by what decides them, and their sources."""
    of_launch = [f"{name} {getattr(spec, name)}" for name in _DECIDE]
    config, tiles = read_config(Path(spec.model_dir)), load_tiles(gpu, exact=spec.exact, dtype=spec.dtype)
    digest = hashlib.sha256("\n".join((triton.__version__, gpu, str(rank), *of_launch, f"{config} {tiles}")).encode())
    for folder in (_KERNELS, Path(__file__).parent):
        for file in sorted(folder.glob("*.py")):
            digest.update(file.read_bytes())
    return Path(triton.knobs.cache.dir, f"splitrank-{digest.hexdigest()[:32]}")


def hash_kernels() -> None:
    """Has Triton hash every kernel, always in the same order, so that a process finds what another has compiled.

    Triton 3.6 hashes a kernel differently if one of its callees was hashed before it.
    """
    for module in sorted(iter_modules([str(_KERNELS)]), key=lambda module: module.name):
        names = vars(import_module(f"splitrank.models.ops.gpu.{module.name}"))
        for _, value in sorted(names.items()):
            if isinstance(value, triton.JITFunction):
                value.cache_key  # noqa: B018  # computed when it is read, and kept


def main() -> int:
    parser = argparse.ArgumentParser(prog="splitrank.serving.rank.kernel_compiler")
    parser.add_argument("--rank", type=int, required=True)
    parser.add_argument("--gpu", required=True)
    parser.add_argument("--target", required=True, type=_target)
    args = parser.parse_args()
    hash_kernels()
    spec = msgspec.msgpack.decode(sys.stdin.buffer.read(), type=LaunchSpec)
    logging.basicConfig(level=spec.log_level.upper(), format=f"%(asctime)s rank {args.rank}: %(message)s")
    began = time.perf_counter()
    tiles = load_tiles(args.gpu, exact=spec.exact, dtype=spec.dtype)
    launches = planned_launches(spec, args.rank, read_config(Path(spec.model_dir)), tiles)
    # Ranks of one kind want the same kernels: each begins elsewhere, and finds in the cache what others have compiled.
    first = len(launches) * args.rank // spec.world_size
    num_processes = max(1, usable_cores() // spec.world_size)
    failed = compile_all(launches[first:] + launches[:first], args.target, num_processes)
    logging.info("compiled %d kernels in %.1f s", len(launches), time.perf_counter() - began)
    return 1 if failed else 0


def _target(text: str) -> GPUTarget:
    backend, arch, warp_size = text.split(":")
    return GPUTarget(backend, int(arch) if arch.isdecimal() else arch, int(warp_size))


def compile_all(launches: list[Call], target: GPUTarget, num_processes: int) -> bool:
    """Whether a process failed. They are forked before anything of the GPU is initialised, which none may inherit."""
    context = multiprocessing.get_context("fork")
    taken = context.Value("i", 0)
    processes = [
        context.Process(target=_compile_next, args=(launches, target, taken, os.getpid())) for _ in range(num_processes)
    ]
    for process in processes:
        process.start()
    exit_with_parent(os.getppid())
    for process in processes:
        process.join()
    return any(process.exitcode != 0 for process in processes)


def _compile_next(launches: list[Call], target: GPUTarget, taken: "Synchronized[int]", parent: int) -> None:
    """Compiles what no other process has taken yet, one by one."""
    exit_with_parent(parent)
    compile_only(target)
    while True:
        with taken.get_lock():
            number = taken.value
            taken.value += 1
        if number >= len(launches):
            return
        compile_ahead(launches[number])


if __name__ == "__main__":
    sys.exit(main())
