"""A rank's threads where memory is short, in a forked child, and beside a caller that computes otherwise."""

import subprocess
import sys
import textwrap

import pytest
import torch

from splitrank.models.ops.cpu.exact import ExactOperations
from splitrank.models.ops.cpu.native import values
from splitrank.models.sharding import TensorShard
from tests.support.limits import PROGRAM_S, scaled

HEAD = """
    import os, resource
    from splitrank import _cpu_ops as cpu_ops

    def allow(more):
        [used] = [int(line.split()[1]) * 1024 for line in open("/proc/self/status") if line.startswith("VmSize:")]
        resource.setrlimit(resource.RLIMIT_AS, (used + more, used + more))
"""


def run(program: str) -> list[str]:
    """Lines that a process of its own prints: it has limits of its own, and no torch."""
    source = textwrap.dedent(HEAD) + textwrap.dedent(program)
    command = [sys.executable, "-c", source]
    done = subprocess.run(command, capture_output=True, text=True, timeout=scaled(PROGRAM_S), check=False)
    assert done.returncode == 0, f"{done.returncode}: {done.stdout}{done.stderr}"
    return done.stdout.splitlines()


def test_a_thread_that_cannot_be_started_is_an_error() -> None:
    """Stacks of 1,000 threads do not fit; those that had been started end."""
    lines = run("""
        allow(100 * 2**20)
        try:
            cpu_ops.Operations(1000)
        except RuntimeError as error:
            print(error)
        print(len(os.listdir("/proc/self/task")))
    """)
    assert "of 1000 of a rank cannot be started" in lines[0]
    assert lines[1:] == ["1"]


@pytest.mark.parametrize("num_threads", [1, 2])
def test_no_room_for_scratch_is_an_error_of_the_call_alone(num_threads: int) -> None:
    """In a unit of the pool, with whichever thread has it; the same memory is asked for again by a call that fits."""
    lines = run(f"""
        import numpy as np

        def pack(num_inputs):
            source, packed = np.ones((33, num_inputs), np.float32), np.zeros((48, num_inputs), np.float32)
            weight = cpu_ops.Weight(0, 0, 33, num_inputs, [0, num_inputs])
            ops.pack(source.ctypes.data, weight, False, packed.ctypes.data)
            print(packed.sum())

        ops = cpu_ops.Operations({num_threads})
        pack(1000)
        allow(81 * 4 * 2**20 + 40 * 2**20)
        try:
            pack(2**20)
        except MemoryError as error:
            print(error)
        pack(1000)
    """)
    assert lines == ["33000.0", f"no room for {16 * 4 * 2**20} bytes of scratch memory", "33000.0"]


def test_a_forked_child_computes_and_ends_without_the_threads() -> None:
    lines = run("""
        import numpy as np

        ops, logits = cpu_ops.Operations(3), np.ones((9, 100), np.float32)
        tokens, largest = np.zeros(9, np.int64), np.zeros(9, np.float32)
        logits[:, 7] = 2
        if child := os.fork():
            _, status = os.waitpid(child, 0)
            print(os.waitstatus_to_exitcode(status))
        ops.greedy(logits.ctypes.data, 9, 100, tokens.ctypes.data, largest.ctypes.data)
        del ops
        print(tokens.tolist() == [7] * 9)
    """)
    assert lines == ["True", "0", "True"]


@pytest.mark.parametrize("num_threads", [1, 2])
def test_what_the_caller_does_with_subnormal_numbers_changes_no_bit(num_threads: int) -> None:
    ops = ExactOperations(TensorShard(0, 1), num_threads)
    weight = ops.store(torch.full((4096, 16), 1e-10))
    x = torch.full((64, 16), 1e-30)

    def product() -> torch.Tensor:
        out = torch.empty(64, 4096)
        ops.native.linear(values(x), 64, weight.native, values(out))
        return out.view(torch.int32)

    expected = product()
    assert expected.unique().numel() == 1
    assert expected[0, 0] > 0
    assert torch.set_flush_denormal(True)
    try:
        found = [product() for _ in range(20)]
        assert float(torch.tensor(1e-30) * 1e-10) == 0  # the caller's own arithmetic stays as it was
    finally:
        torch.set_flush_denormal(False)
    assert all(torch.equal(one, expected) for one in found)
