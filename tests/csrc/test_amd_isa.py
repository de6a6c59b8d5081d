"""The memory order of the quick all-reduce in the machine code of AMD GPUs, and that the check of it can fail."""

import json
import shutil
import subprocess
import sys
from collections.abc import Sequence
from itertools import combinations, product
from pathlib import Path

import pytest

from tests.csrc.programs import PROOF
from tests.support.limits import PROGRAM_S, PROOF_S, scaled

ROOT = Path(__file__).parents[2]
SCRIPT = ROOT / "scripts/check_amd_isa.py"
PACKAGES = "clang-22 lld-22 llvm-22"
TOOLS = ("clang++-22", "ld.lld-22", "llvm-objdump-22", "llvm-readelf-22", "llvm-symbolizer-22", "llvm-cxxfilt-22")

pytestmark = [
    *PROOF,
    pytest.mark.skipif(any(shutil.which(tool) is None for tool in TOOLS), reason=f"needs Debian's packages {PACKAGES}"),
]

DTYPES = ("fp32", "bf16", "fp16")
WORLD_SIZES = (2, 4, 8)
MAILBOX = {"mailbox send", "mailbox receive"}
CODED = ("int8", "int6", "int4")
Kind = tuple[str, int, tuple[str, ...]]  # of kernels: dtype, number of ranks, codecs
ALL_KINDS = tuple((dtype, size, ("none", *CODED)) for dtype, size in product(DTYPES, WORLD_SIZES))
# What is compiled without --full: each kernel that has no codec, for one machine; and those that have one by pairs:
# each dtype, number of ranks, codec and machine with each of the others.
KINDS: dict[str, tuple[Kind, ...]] = {
    "gfx942": (("fp32", 2, ("none", "int8")), ("bf16", 8, ("none", "int4")), ("fp16", 4, ("none", "int6"))),
    "gfx90a": (("fp32", 4, ("none", "int4")), ("bf16", 2, ("none", "int6")), ("fp16", 8, ("none", "int8"))),
    "gfx950": (("fp32", 8, ("none", "int6")), ("bf16", 4, ("none", "int8")), ("fp16", 2, ("none", "int4"))),
}
ONE_SHOT = """#include "quick_reduce/gpu/kernels.h"
namespace splitrank::quick_reduce {
using Work = OneShotWork<GpuExecutor<8, UNROLL>, Bfloat16, CodecNone<Bfloat16>, WORLD>;
template __global__ void all_reduce_kernel<Work>(Job);
}
"""


def check(*arguments: object) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, str(SCRIPT), "-j2", *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, timeout=scaled(PROOF_S), check=False)


def kind_arguments(kinds: Sequence[Kind]) -> list[str]:
    return [word for dtype, size, codecs in kinds for word in ("--kind", ":".join([dtype, str(size), *codecs]))]


def kernel_names(kinds: Sequence[Kind]) -> set[str]:
    """Of all kernels of these kinds, and of the mailbox's."""
    names = set(MAILBOX)
    for dtype, size, codecs in kinds:
        names |= {f"two-shot {dtype} {codec} W={size}" for codec in codecs}
        names |= {f"one-shot {dtype} {codec} W={size}" for codec in codecs if size == 2 or codec == "none"}
        names |= {f"registered {dtype} none W={size}"} if "none" in codecs else set()
    return names


def check_report(report: Path, expected: set[tuple[str, str]]) -> None:
    """It has these kernels and machines, and no others, with flag stores and loads in each, and no spills."""
    rows = json.loads(report.read_text())["rows"]
    assert {(row["kernel"], row["arch"]) for row in rows} == expected
    for row in rows:
        assert row["counts"]["releases"] > 0
        assert row["counts"]["acquires"] > 0
        assert row["resources"]["vgpr_spill_count"] == 0


# gfx942's kernels are checked as they lie in the module (test_hip_module.py).
@pytest.mark.parametrize("arch", ["gfx90a", "gfx950"])
def test_kernels_keep_the_rules(arch: str, tmp_path: Path) -> None:
    report = tmp_path / "report.json"
    done = check(*kind_arguments(KINDS[arch]), "--arch", arch, "--json", report)
    assert done.returncode == 0, done.stderr
    check_report(report, {(name, arch) for name in kernel_names(KINDS[arch])})


def test_the_kinds_of_codecs_are_pairs() -> None:
    """Of dtype, number of ranks, codec and machine, each value occurs with each of the others exactly once."""
    rows = [(dtype, size, codec, arch) for arch, of in KINDS.items() for dtype, size, (_, codec) in of]
    for one, other in combinations(range(4), 2):
        assert len({(row[one], row[other]) for row in rows}) == len(rows) == 9


@pytest.mark.full
@pytest.mark.parametrize("dtype", DTYPES)
def test_every_kernel_keeps_the_rules_on_every_machine(dtype: str, tmp_path: Path) -> None:
    report = tmp_path / "report.json"
    kinds = [kind for kind in ALL_KINDS if kind[0] == dtype]
    done = check(*kind_arguments(kinds), "--json", report)
    assert done.returncode == 0, done.stderr
    check_report(report, {(name, arch) for name in kernel_names(kinds) for arch in KINDS})


WAIT = r"\n\ts_waitcnt vmcnt(0)\n\tglobal_store_dwordx2"
RELEASE_STORE = (
    "__scoped_atomic_store_n((detail::Global<uint64_t>*)to, value, __ATOMIC_RELEASE, __MEMORY_SCOPE_SYSTEM);"
)
ALL = ("gfx90a", "gfx942")  # gfx950 spells like gfx942

# name: (what is replaced in the primitives, by what, the rules that must be broken, the machines)
MUTATIONS: dict[str, tuple[str, str, set[str], tuple[str, ...]]] = {
    "a flag that does not wait for its write-back": (WAIT, r"\n\tglobal_store_dwordx2", {"release-wait"}, ALL),
    "a flag without write-back": (
        f'asm volatile(QR_WRITE_BACK "{WAIT}',
        r'asm volatile("s_waitcnt vmcnt(0)\n\tglobal_store_dwordx2',
        {"release-writeback"},
        ALL,
    ),
    "a flag that is released on one of two paths": (
        f'asm volatile(QR_WRITE_BACK "{WAIT}',
        'if (value & 1) detail::release_system();\n    asm volatile("global_store_dwordx2',
        {"release-writeback"},
        ALL,
    ),
    "a flag at the scope of the device": (
        'off" QR_SYSTEM_SCOPE ::"v"(to),\n                 "v"(value)\n                 : "memory");\n}\n'
        "QR_DEVICE void store_release_system(uint32_t",
        'off sc1" ::"v"(to),\n                 "v"(value)\n                 : "memory");\n}\n'
        "QR_DEVICE void store_release_system(uint32_t",
        {"flag-scope"},
        ("gfx942",),
    ),
    "waves that do not write back before the barrier": (
        "void drain_stores() { detail::release_system(); }",
        "void drain_stores() {}",
        {"barrier-writeback"},
        ALL,
    ),
    "a barrier that does not wait for stores": (
        '"workgroup");\n    detail::wait_for_memory();\n',
        '"workgroup");\n',
        {"barrier-drain"},
        ALL,
    ),
    "an acquire that leaves the caches alone": (
        '__builtin_amdgcn_fence(__ATOMIC_ACQUIRE, ""); }',
        "}",
        {"acquire-invalidate"},
        ALL,
    ),
    "an acquire for the device alone": (
        '__builtin_amdgcn_fence(__ATOMIC_ACQUIRE, ""); }',
        '__builtin_amdgcn_fence(__ATOMIC_ACQUIRE, "agent"); }',
        {"acquire-invalidate"},
        ALL,
    ),
    "flags that are loaded from this device's caches": (
        "from, __ATOMIC_RELAXED, __MEMORY_SCOPE_SYSTEM);\n    detail::acquire",
        "from, __ATOMIC_RELAXED, __MEMORY_SCOPE_DEVICE);\n    detail::acquire",
        {"flag-scope"},
        ("gfx942",),
    ),
    "exchange data like any other": (
        "__builtin_nontemporal_store(bit_cast<detail::Quad>(value), (detail::Global<detail::Quad>*)to)",
        "*(detail::Global<detail::Quad>*)to = bit_cast<detail::Quad>(value)",
        {"empty"},
        ALL,
    ),
    "too much LDS": ("kMaxWaves = 1024 / kWaveSize", "kMaxWaves = 1024", {"group_segment_fixed_size"}, ALL),
}


def mutate(folder: Path, before: str, after: str) -> Path:
    """A copy of the sources with one change in the primitives."""
    csrc = folder / "csrc"
    shutil.copytree(ROOT / "csrc/quick_reduce", csrc / "quick_reduce", ignore=shutil.ignore_patterns("cpu", "*.cc"))
    primitives = csrc / "quick_reduce/gpu/hip_primitives.h"
    text = primitives.read_text()
    assert text.count(before) == 1, f"hip_primitives.h has {text.count(before)} of {before!r}"
    primitives.write_text(text.replace(before, after))
    return csrc


def kernel_source(folder: Path, world_size: int = 2, unroll: int = 1) -> Path:
    source = folder / "kernel.hip"
    source.write_text(ONE_SHOT.replace("UNROLL", str(unroll)).replace("WORLD", str(world_size)))
    return source


@pytest.mark.parametrize("name", MUTATIONS)
def test_broken_primitives_are_found(name: str, tmp_path: Path) -> None:
    before, after, rules, archs = MUTATIONS[name]
    csrc = mutate(tmp_path, before, after)
    report = tmp_path / "report.json"
    machines = [word for arch in archs for word in ("--arch", arch)]
    done = check("--csrc", csrc, "--source", kernel_source(tmp_path), *machines, "--json", report)
    assert done.returncode == 1
    rows = json.loads(report.read_text())["rows"]
    assert [row["arch"] for row in rows] == list(archs)
    for row in rows:
        assert rules <= {violation["rule"] for violation in row["violations"]}, (row["arch"], done.stderr)
        said = [line for line in done.stderr.splitlines() if f"one-shot bf16 none W=2 on {row['arch']} at 0x" in line]
        for rule in rules:
            assert any(f": {rule}: " in line for line in said)


def test_the_compilers_own_release_store_lacks_its_wait(tmp_path: Path) -> None:
    """The reason for the assembly in the primitives. If this fails, this compiler is repaired."""
    text = (ROOT / "csrc/quick_reduce/gpu/hip_primitives.h").read_text()
    start = text.index("{", text.index("void store_release_system(uint64_t*")) + 1
    body = text[start : text.index("}", start)]
    csrc = mutate(tmp_path, body, RELEASE_STORE)
    done = check("--csrc", csrc, "--source", kernel_source(tmp_path), "--arch", "gfx942")
    assert done.returncode == 1
    assert ": release-wait: global_store_dwordx2" in done.stderr


def test_spills_are_found(tmp_path: Path) -> None:
    source = kernel_source(tmp_path, world_size=8, unroll=8)
    done = check("--source", source, "--arch", "gfx942")
    assert done.returncode == 1
    assert "vgpr_spill_count: " in done.stderr
    assert ": scratch: scratch_" in done.stderr


def test_missing_kernels_are_errors(tmp_path: Path) -> None:
    """In a dispatch that knows only registered calls: the others take ten seconds of the compiler's time."""
    csrc = tmp_path / "csrc"
    for protocol in ("quick_reduce", "stage_mailbox"):
        shutil.copytree(ROOT / "csrc" / protocol, csrc / protocol, ignore=shutil.ignore_patterns("cpu", "*.cc"))
    dispatch = csrc / "quick_reduce/gpu/dispatch.h"
    lines = dispatch.read_text().splitlines(keepends=True)
    kept = [line for line in lines if "case CodecKind::k" not in line]
    assert len(lines) - len(kept) == 4
    dispatch.write_text("".join(kept).replace("switch (codec) {", "switch (codec) { default: break;"))
    done = check("--csrc", csrc, "--arch", "gfx942", "--kind", "bf16:8")
    assert done.returncode == 1
    missing = [line for line in done.stderr.splitlines() if "no such kernel was compiled" in line]
    expected = kernel_names([("bf16", 8, ("none", *CODED))]) - MAILBOX - {"registered bf16 none W=8"}
    assert len(expected) == 5
    assert set(missing) == {f"check_amd_isa: {kernel} on gfx942: no such kernel was compiled" for kernel in expected}


def test_an_unknown_kind_is_refused() -> None:
    for kind in ("bf16", "bf8:4", "bf16:3", "bf16:4:int5", "bf16:4:"):
        done = check("--kind", kind)
        assert done.returncode == 2
        assert f"{kind!r} is not DTYPE:RANKS or DTYPE:RANKS:CODEC..." in done.stderr


def test_missing_tools_are_named(tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, str(SCRIPT)],
        capture_output=True,
        text=True,
        timeout=scaled(PROGRAM_S),
        env={"PATH": str(tmp_path)},
        check=False,
    )
    assert done.returncode == 2
    assert f"apt-get install {PACKAGES}" in done.stderr
