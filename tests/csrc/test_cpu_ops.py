"""The kernels of the CPU's operations against their serial versions, with AddressSanitizer and UBSan looking on.

Where this machine has no AVX-512, those kernels are compiled with as many lanes for the instructions that it has.
"""

from pathlib import Path

import pytest

from splitrank import _cpu_ops as cpu_ops
from tests.csrc.programs import CSRC, FOLDER, PROOF, build, compile_one, run

pytestmark = PROOF

OPERATIONS = CSRC / "cpu"
FLAGS = ("-g1", "-fsanitize=address,undefined", "-fno-sanitize-recover=all")
AVX2 = ("-mavx2", "-mfma")
AVX512 = ("-mavx512f", "-mavx512bw", "-mavx512dq", "-mavx512vl", "-mfma")


@pytest.fixture(scope="module")
def program(tmp_path_factory: pytest.TempPathFactory, full: bool) -> Path:
    """Not optimised: that halves the compiler's time, and the sanitizers see every access of the source. What ships is
    compared with the model in tests/models/ops/cpu."""
    folder = tmp_path_factory.mktemp("cpu_ops")
    flags = ("-O1" if full else "-O0", *FLAGS)
    wide = () if "avx512" in cpu_ops.instruction_sets() else ("-DWIDE",)
    sets = {"baseline": (), "avx2": AVX2, "avx512": (*AVX2, "-DSPLITRANK_LANES=16", "-Wno-psabi") if wide else AVX512}
    kernels = [
        compile_one(OPERATIONS / f"kernels_{name}.cc", folder / f"{name}.o", *flags, *of_set)
        for name, of_set in sets.items()
    ]
    sources = [FOLDER / "cpu_ops" / "kernels_test.cc", OPERATIONS / "instruction_sets.cc"]
    return build([*sources, *kernels], folder / "kernels_test", *flags, *wide)


def test_every_kernel_gives_what_its_serial_version_gives(program: Path) -> None:
    done = run(program)
    assert done.returncode == 0, done.stderr[:4000]
    report = done.json()
    assert report["wrong"] == 0
    assert report["checked"] > 10_000
