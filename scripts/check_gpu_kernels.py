"""Compiles every GPU kernel at its table's tiles for NVIDIA and AMD, without a GPU, and checks what the compiler says.

    python scripts/check_gpu_kernels.py [--target sm_90 gfx942 ...] [--rows 1 8 ...] [--largest] [--json FILE] [-j 2]

Those of a decode step at the numbers of rows given, and those of a prefill step; with ``--largest`` each kernel and
form once, at the largest of its tiles, which needs most registers and shared memory. Prints a line a kernel and target:
registers, spills, shared memory (LDS), matrix instructions. Exits with 1 where a kernel spills more than its limit,
needs more LDS than the machine has, or multiplies without matrix instructions.
"""

import argparse
import json
import re
import subprocess
import sys
import tempfile
from collections.abc import Iterable
from concurrent.futures import ProcessPoolExecutor
from dataclasses import asdict, dataclass
from functools import cache
from math import prod
from pathlib import Path
from typing import Any

import torch
import triton
from decode_chain import Sampling, Shape, State, Step, Weights
from prefill_step import Step as PrefillStep
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource
from triton.tools.tensor_descriptor import TensorDescriptor

from splitrank.models.exactness import SHARDS
from splitrank.models.ops.gpu.launch import Call, noted_launches, options_of
from splitrank.models.ops.gpu.rows import advance_rows, gather_rows, gather_sampling, keep_tokens
from splitrank.models.ops.gpu.sampling import SamplingRows
from splitrank.models.ops.gpu.tiles import load_tiles

KIB = 2**10
ROWS = (1, 2, 4, 8, 16, 32, 64, 128, 256)
PREFILL = (4, 2048)  # sequences, tokens of each


@dataclass(frozen=True)
class Machine:
    """A target, the GPU whose table it gets, and the shared memory of a block."""

    target: GPUTarget
    gpu: str
    max_shared_bytes: int


MACHINES = {
    "sm_90": Machine(GPUTarget("cuda", 90, 32), "NVIDIA H200", 227 * KIB),
    "gfx90a": Machine(GPUTarget("hip", "gfx90a", 64), "AMD Instinct MI250X", 64 * KIB),
    "gfx942": Machine(GPUTarget("hip", "gfx942", 64), "AMD Instinct MI300X", 64 * KIB),
    "gfx950": Machine(GPUTarget("hip", "gfx950", 64), "AMD Instinct MI355X", 160 * KIB),
}
# Spilled registers a kernel may have; none, but for those named here with the reason.
SPILLS = {
    "delta_step": 16,  # a state of 32 values in one warp: 95 us with these, 99 with 16 values and none (H200, 256 rows)
    "cos_sin": 8,  # NVIDIA: 32 bytes of stack, for the range reduction of large angles
    "sample_streams": 2,  # NVIDIA with Triton 3.9, outside of its loops
    "delta_chunk": 4,  # NVIDIA: before and behind the loop over blocks; none in it
    "attention_chunk": 40,  # NVIDIA: around the gate, behind the loops over keys; none in them
}
MULTIPLIES = re.compile(r"\w+_dot|experts_(up|down)|attention_decode|sorted_\w+|solve_blocks|\w+_chunk(?<!conv_chunk)")
MATRIX = re.compile(r"wgmma\.mma_async|mma\.sync|v_mfma|v_smfma")


@dataclass(frozen=True)
class Row:
    """What was compiled, and what came out."""

    kernel: str
    target: str
    rows: str
    registers: int
    spills: int
    shared_bytes: int
    matrix: str

    def problems(self) -> list[str]:
        found, where = [], f"{self.kernel} on {self.target} ({self.rows} rows)"
        if self.spills > SPILLS.get(self.kernel, 0):
            found.append(f"{where} spills {self.spills} registers, limit {SPILLS.get(self.kernel, 0)}")
        if MULTIPLIES.fullmatch(self.kernel) and not self.matrix:
            found.append(f"{where} multiplies without matrix instructions")
        limit = MACHINES[self.target].max_shared_bytes
        if self.shared_bytes > limit:
            found.append(f"{where} needs {self.shared_bytes} bytes of shared memory, a block has {limit}")
        return found


@dataclass(frozen=True)
class Variant:
    """A kernel with all that decides its machine code. ``key`` tells equal ones; ``rows``: the steps that it is in."""

    call: Call
    rows: tuple[int, ...]
    key: str


def collect(machine: Machine, rows: Iterable[int], shape: Shape) -> list[Variant]:
    """Every launch of a decode step at these batch sizes and of a prefill step, exact and not, each different kernel
    once."""
    meta = torch.device("meta")
    calls: list[tuple[int, Call]] = []
    weights = Weights(shape, meta, torch.bfloat16, 1)
    for table, shards in ((load_tiles(machine.gpu), 1), (load_tiles(machine.gpu, exact=True), SHARDS)):
        for count in rows:
            with noted_launches() as noted:
                Step(shape, weights, State(shape, count, 256, 64, meta, torch.bfloat16), count, table, shards)()
                Sampling(shape, count, meta, 0.6, 20, 0.95)()
                move_rows(count, meta)
            calls += [(count, call) for call in noted]
        with noted_launches() as noted:
            PrefillStep(*PREFILL, table, meta, shards).layers(4)
        calls += [(PREFILL[0] * PREFILL[1], call) for call in noted]
    variants: dict[str, Variant] = {}
    for count, call in calls:
        key = f"{call.name} {sorted(_signature(call)[1].items())} {sorted(_signature(call)[0].items())} {call.tile}"
        known = variants[key].rows if key in variants else ()
        variants[key] = Variant(call, known if count in known else (*known, count), key)
    return list(variants.values())


def largest(variants: Iterable[Variant]) -> list[Variant]:
    """Of each kernel and form the one with the largest tile; of equal ones that for most rows."""

    def size(variant: Variant) -> tuple[int, int]:
        return prod(variant.call.tile.sizes.values()), max(variant.rows)

    found: dict[tuple[str, str], Variant] = {}
    for variant in sorted(variants, key=size):
        found[variant.call.name, variant.call.tile.form] = variant
    return list(found.values())


def move_rows(count: int, device: torch.device) -> None:
    """What moves a step's rows from the request table and back."""

    def numbers(*shape: int, dtype: torch.dtype = torch.int32) -> torch.Tensor:
        return torch.empty(shape, dtype=dtype, device=device)

    slots, lengths, num_live, width = numbers(count), numbers(257), numbers(1), 512
    gather_rows(slots, lengths, numbers(257, width), numbers(count), numbers(count, width))
    advance_rows(slots, lengths, num_live)
    keep_tokens(slots, numbers(count), lengths, numbers(257, dtype=torch.int64), num_live)
    gather_sampling(slots, SamplingRows.empty(257, device), SamplingRows.empty(count, device))


def _signature(call: Call) -> tuple[dict[str, str], dict[str, Any]]:
    """Types by argument, and constants: as a launch specialises, from addresses and numbers that 16 divides."""
    constants = {name for name, p in zip(call.kernel.arg_names, call.kernel.params, strict=True) if p.is_constexpr}
    types: dict[str, str] = {}
    values: dict[str, Any] = {}
    for name, value in (call.arguments | {"PDL": call.tile.pdl}).items():
        if name in constants or value is None or (type(value) is int and value == 1):
            types[name], values[name] = "constexpr", value
        elif isinstance(value, TensorDescriptor):
            types[name] = f"tensordesc<bf16{value.block_shape}>"
        elif isinstance(value, torch.Tensor):
            types[name] = {
                torch.bfloat16: "*bf16",
                torch.float32: "*fp32",
                torch.int32: "*i32",
                torch.float64: "*fp64",
                torch.int64: "*i64",
            }[value.dtype]
        else:
            types[name] = "i32"
    return {name: types[name] for name in call.kernel.arg_names}, values


def compile_variant(variant: Variant, name: str) -> Row:
    call, machine = variant.call, MACHINES[name]
    types, constants = _signature(call)
    wide = [
        (at,)
        for at, argument in enumerate(call.kernel.arg_names)
        if types[argument].startswith("*") or (types[argument] == "i32" and call.arguments[argument] % 16 == 0)
    ]
    if machine.target.backend == "hip":
        constants["PDL"] = False
    source = ASTSource(call.kernel, types, constants, {at: [["tt.divisibility", 16]] for at in wide})
    options = options_of(call.tile)
    if constants["PDL"]:
        options["launch_pdl"] = True
    compiled = triton.compile(source, target=machine.target, options=options)
    registers, spills = _resources(compiled, machine.target)
    text = compiled.asm["ptx" if machine.target.backend == "cuda" else "amdgcn"]
    matrix = ",".join(sorted({found.split(".")[0] for found in MATRIX.findall(text)}))
    rows = ",".join(map(str, variant.rows))
    return Row(call.name, name, rows, registers, spills, compiled.metadata.shared, matrix)


def _resources(compiled: Any, target: GPUTarget) -> tuple[int, int]:
    """Registers a thread, and spilled ones."""
    if target.backend == "hip":
        counts = {key: int(value) for key, value in re.findall(r"\.(\w+):\s+(\d+)\s*$", compiled.asm["amdgcn"], re.M)}
        return counts["vgpr_count"], counts["vgpr_spill_count"]
    tool = Path(triton.__file__).parent / "backends/nvidia/bin/cuobjdump"
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(compiled.asm["cubin"])
        file.flush()
        command = [str(tool), "--dump-resource-usage", file.name]
        text = subprocess.run(command, capture_output=True, text=True, check=True, timeout=60).stdout
    usage = dict(re.findall(r"(REG|STACK|LOCAL):(\d+)", text))
    return int(usage["REG"]), (int(usage["STACK"]) + int(usage["LOCAL"])) // 4


def main() -> int:
    args = _arguments()
    shape = Shape(num_layers=4)
    chosen = largest if args.largest else list
    units = [(variant, name) for name in args.target for variant in chosen(collect(MACHINES[name], args.rows, shape))]
    if args.jobs > 1:
        with ProcessPoolExecutor(args.jobs) as pool:
            rows = list(pool.map(compile_unit, [(name, variant.key, tuple(args.rows)) for variant, name in units]))
    else:
        rows = [compile_variant(variant, name) for variant, name in units]
    print(f"{'kernel':24}{'target':8}{'rows':28}{'regs':>5}{'spills':>7}{'shared':>8}  matrix")
    for row in rows:
        print(
            f"{row.kernel:24}{row.target:8}{row.rows:28}",
            f"{row.registers:4}{row.spills:7}{row.shared_bytes:8}  {row.matrix}",
        )
    problems = [problem for row in rows for problem in row.problems()]
    if args.json:
        args.json.write_text(json.dumps([asdict(row) for row in rows], indent=1))
    for problem in problems:
        print(f"check_gpu_kernels: {problem}", file=sys.stderr)
    print(f"{len(rows)} kernels compiled with Triton {triton.__version__}, {len(problems)} problems")
    return 1 if problems else 0


def compile_unit(unit: tuple[str, str, tuple[int, ...]]) -> Row:
    """In a process of its own, which finds its kernel again by key: kernels do not travel."""
    name, key, rows = unit
    return compile_variant(_variants_by_key(name, rows)[key], name)


@cache
def _variants_by_key(name: str, rows: tuple[int, ...]) -> dict[str, Variant]:
    """Once a process: to collect them takes a tenth of a second, and a process compiles dozens."""
    return {variant.key: variant for variant in collect(MACHINES[name], rows, Shape(num_layers=4))}


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--target", nargs="+", choices=list(MACHINES), default=list(MACHINES))
    parser.add_argument("--rows", nargs="+", type=int, default=list(ROWS), help="batch sizes")
    parser.add_argument("--largest", action="store_true", help="each kernel and form once, at its largest tile")
    parser.add_argument("--json", type=Path, help="also write the table as JSON to this file")
    parser.add_argument("-j", "--jobs", type=int, default=1, help="compilers side by side")
    return parser.parse_args()


if __name__ == "__main__":
    sys.exit(main())
