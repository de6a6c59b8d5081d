"""Checks the kernels of the quick all-reduce and of the mailbox in the machine code of AMD GPUs; needs no such GPU.

Compiles every kernel for gfx90a, gfx942 and gfx950, or takes the code objects of a module, and checks on the
disassembly the rules of amd_isa_rules.py, and the limits below on what the compiler's metadata says of registers,
spills and LDS. Prints a table, kernel x machine, then each violation with kernel, machine, address and rule; exits with
1 if there is one, with 2 if it could not check.
"""

import argparse
import json
import re
import shutil
import sys
import tempfile
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from itertools import product
from pathlib import Path

from amd_isa_objects import COMPILER, PACKAGES, TOOLS, Kernel, compile_object, read_object
from amd_isa_rules import ARCHS, Violation, check_kernel

CSRC = Path(__file__).resolve().parent.parent / "csrc"
DTYPES = {"fp32": "Float32", "bf16": "Bfloat16", "fp16": "Float16"}
WORLD_SIZES = (2, 4, 8)
WORKS = {"OneShotWork": "one-shot", "TwoShotWork": "two-shot", "RegisteredWork": "registered"}
CODECS = {"none": "None", "int8": "Int8", "int6": "Int6", "int4": "Int4"}
# What a kernel does with exchange memory, if not both. A registered call's peers read tensors where they lie.
EXCHANGE = {"registered": (), "mailbox send": ("stores",), "mailbox receive": ("loads",)}
MAILBOX = ("mailbox send", "mailbox receive")

# Of the metadata, with what would go wrong beyond. A block of 512 lanes puts two waves on each SIMD of 512 registers.
LIMITS = {
    "vgpr_count": 256,
    "vgpr_spill_count": 0,
    "private_segment_fixed_size": 64,  # bytes a lane: LLVM may reserve some; the rule "scratch" is against using them
    "sgpr_spill_count": 256,  # into lanes of vector registers, not to memory
    "group_segment_fixed_size": 1024,  # bytes of LDS a block
}


@dataclass(frozen=True)
class Kind:
    """Kernels that are compiled together."""

    dtype: str
    world_size: int
    codecs: tuple[str, ...] = tuple(CODECS)  # a registered call has none

    def ways(self) -> list[tuple[str, str]]:
        """(algorithm, codec) of the kernels."""
        one_shot = [codec for codec in self.codecs if self.world_size == 2 or codec == "none"]
        ways = [("two-shot", codec) for codec in self.codecs] + [("one-shot", codec) for codec in one_shot]
        return [*ways, *([("registered", "none")] if "none" in self.codecs else [])]

    def dispatch(self) -> str:
        """What instantiates the kernels: of all codecs as in the module."""
        of = f"{DTYPES[self.dtype]}, {self.world_size}"
        if self.codecs == tuple(CODECS):
            return f"return kernel_of_type<{of}>(codec, algorithm);"
        type_name = DTYPES[self.dtype]
        parts = []
        if "none" in self.codecs:
            work = f"RegisteredWork<RawExecutor<{of}>, {of}>"
            parts.append(f"if (algorithm == Algorithm::kRegistered) return kernel_address<{work}>();")
        for name in (CODECS[codec] for codec in self.codecs):
            call = f"kernel_with_codec<{type_name}, Codec{name}<{type_name}>, {self.world_size}>(algorithm)"
            parts.append(f"if (codec == CodecKind::k{name}) return {call};")
        return " ".join([*parts, "return nullptr;"])


@dataclass(frozen=True)
class Row:
    kernel: str
    arch: str
    counts: dict[str, int]
    resources: dict[str, int]
    violations: list[Violation]


def main() -> int:
    args = _arguments()
    if missing := [tool for tool in (COMPILER, *TOOLS.values()) if shutil.which(tool) is None]:
        print(f"check_amd_isa: no {', '.join(missing)}; on Debian: apt-get install {PACKAGES}", file=sys.stderr)
        return 2
    try:
        rows, problems = _check_all(args)
    except RuntimeError as error:  # of a compiler or tool
        print(f"check_amd_isa: {error}", file=sys.stderr)
        return 2
    if args.json:
        args.json.write_text(json.dumps({"rows": [asdict(row) for row in rows], "problems": problems}, indent=1))
    _print_table(rows, args.arch)
    for row in rows:
        for found in row.violations:
            problems.append(f"{row.kernel} on {row.arch} at {found.address:#x}: {found.rule}: {found.text}")
    for problem in problems:
        print(f"check_amd_isa: {problem}", file=sys.stderr)
    print(f"{len(rows)} kernels checked, {len(problems)} violations")
    return 1 if problems else 0


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--arch", action="append", choices=list(ARCHS), help="may be given again; default: all")
    parser.add_argument("--csrc", type=Path, default=CSRC, help="folder of the sources")
    parser.add_argument("--kind", action="append", type=_kind, help="as bf16:4 or bf16:4:none:int8; default: all")
    parser.add_argument("--source", type=Path, action="append", help="check this file's kernels instead of all")
    parser.add_argument("--object", type=Path, action="append", help="compile nothing: check this, of the one --arch")
    parser.add_argument("--json", type=Path, help="also write the table as JSON to this file")
    parser.add_argument("-j", "--jobs", type=int, default=1, help="compilers side by side")
    args = parser.parse_args()
    if args.object and len(args.arch or ()) != 1:
        parser.error("--object needs one --arch, the one of the objects")
    args.arch = args.arch or list(ARCHS)
    args.kind = args.kind or [Kind(dtype, world_size) for dtype, world_size in product(DTYPES, WORLD_SIZES)]
    return args


def _kind(text: str) -> Kind:
    dtype, _, others = text.partition(":")
    world_size, *codecs = others.split(":")
    if dtype not in DTYPES or world_size not in map(str, WORLD_SIZES) or not set(codecs) <= set(CODECS):
        raise argparse.ArgumentTypeError(
            f"{text!r} is not DTYPE:RANKS or DTYPE:RANKS:CODEC... of {', '.join(DTYPES)}; 2, 4, 8; {', '.join(CODECS)}"
        )
    return Kind(dtype, int(world_size), tuple(codecs) or tuple(CODECS))


def _check_all(args: argparse.Namespace) -> tuple[list[Row], list[str]]:
    if args.object:
        rows = [_check(args.arch[0], kernel) for path in args.object for kernel in read_object(path)]
    else:
        rows = _compile_and_check(args)
    problems = [] if args.source else list(_missing_kernels(rows, args))
    problems += _unequal_machines(rows)
    return rows, problems


def _compile_and_check(args: argparse.Namespace) -> list[Row]:
    with tempfile.TemporaryDirectory() as folder:
        sources = args.source or list(_write_sources(Path(folder), args.kind))
        units = list(product(sources, args.arch))
        with ThreadPoolExecutor(args.jobs) as pool:
            found = pool.map(lambda unit: _check_unit(unit[0], unit[1], args.csrc, Path(folder)), units)
            return [row for unit_rows in found for row in unit_rows]


def _write_sources(folder: Path, kinds: list[Kind]) -> Iterator[Path]:
    """One translation unit a kind, a few seconds each; and the mailbox's."""
    for number, kind in enumerate(kinds):
        path = folder / f"{kind.dtype}_{kind.world_size}_{number}.hip"
        path.write_text(
            '#include "quick_reduce/gpu/dispatch.h"\n'
            "namespace splitrank::quick_reduce {\n"
            "const void* find([[maybe_unused]] CodecKind codec, Algorithm algorithm) {\n"
            f"    {kind.dispatch()}\n"
            "}\n"
            "}  // namespace splitrank::quick_reduce\n"
        )
        yield path
    path = folder / "mailbox.hip"
    path.write_text('#include "stage_mailbox/gpu/kernels.h"\n')
    yield path


def _check_unit(source: Path, arch: str, csrc: Path, folder: Path) -> list[Row]:
    target = folder / f"{source.stem}.{arch}.o"
    compile_object(arch, csrc, source, target)
    return [_check(arch, kernel) for kernel in read_object(target)]


def _check(arch: str, kernel: Kernel) -> Row:
    label = kernel_label(kernel.name)
    exchange = next((uses for start, uses in EXCHANGE.items() if label.startswith(start)), ("loads", "stores"))
    violations, counts = check_kernel(ARCHS[arch], kernel.code, exchange)
    resources = {field: kernel.resources[field] for field in LIMITS}
    for field, limit in LIMITS.items():
        if resources[field] > limit:
            violations.append(Violation(field, kernel.code[0].address, f"{resources[field]}, limit {limit}"))
    return Row(label, arch, dict(counts), resources, violations)


def kernel_label(name: str) -> str:
    """``two-shot bf16 int8 W=4`` or ``mailbox send`` of a demangled name; the name itself if it is none of ours."""
    if mailbox := re.search(r"::mailbox_(send|receive)_kernel\(", name):
        return f"mailbox {mailbox[1]}"
    name = name.replace("splitrank::quick_reduce::", "")
    work = re.search(
        r"<(\w+Work)<GpuExecutor<[^>]*>, (\w+), (?:(CodecNone|CodecQuantised)<\w+(?:, (\d))?.*>, )?(\d)> *>", name
    )
    if work is None or work[1] not in WORKS:
        return name
    dtype = next(short for short, type_name in DTYPES.items() if type_name == work[2])
    codec = f"int{work[4]}" if work[4] else "none"
    return f"{WORKS[work[1]]} {dtype} {codec} W={work[5]}"


def _missing_kernels(rows: list[Row], args: argparse.Namespace) -> Iterator[str]:
    checked = {(row.kernel, row.arch) for row in rows}
    for arch, kind in product(args.arch, args.kind):
        for algorithm, codec in kind.ways():
            kernel = f"{algorithm} {kind.dtype} {codec} W={kind.world_size}"
            if (kernel, arch) not in checked:
                yield f"{kernel} on {arch}: no such kernel was compiled"
    for arch, kernel in product(args.arch, MAILBOX):
        if (kernel, arch) not in checked:
            yield f"{kernel} on {arch}: no such kernel was compiled"


def _unequal_machines(rows: list[Row]) -> Iterator[str]:
    """On gfx90a only its source tells a flag store: one that lost it shows by the other machines' number."""
    by_kernel: dict[str, dict[str, int]] = {}
    for row in rows:
        by_kernel.setdefault(row.kernel, {})[row.arch] = row.counts["releases"]
    for kernel, releases in by_kernel.items():
        if len(set(releases.values())) > 1:
            yield f"{kernel}: the number of flag stores and atomics differs: {releases}"


def _print_table(rows: list[Row], archs: list[str]) -> None:
    """Vector registers / spills to lanes of them / flag stores checked, or the number of violations."""
    by_kernel: dict[str, dict[str, Row]] = {}
    for row in rows:
        by_kernel.setdefault(row.kernel, {})[row.arch] = row
    width = max((len(kernel) for kernel in by_kernel), default=0)
    print("kernel".ljust(width), *(arch.ljust(14) for arch in archs), " (VGPRs / SGPR spills / releases)")
    for kernel, of_arch in by_kernel.items():
        print(kernel.ljust(width), *(_cell(of_arch.get(arch)).ljust(14) for arch in archs))


def _cell(row: Row | None) -> str:
    if row is None:
        return "-"
    if row.violations:
        return f"{len(row.violations)} wrong"
    resources = row.resources
    return f"{resources['vgpr_count']} / {resources['sgpr_spill_count']} / {row.counts['releases']}"


if __name__ == "__main__":
    sys.exit(main())
