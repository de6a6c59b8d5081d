"""Compiles kernels for AMD machines with a plain clang, and reads what LLVM's tools say about the code objects."""

import json
import re
import subprocess
from dataclasses import dataclass
from pathlib import Path

from amd_isa_rules import Instruction

LLVM = 22
COMPILER = f"clang++-{LLVM}"
TOOLS = {tool: f"llvm-{tool}-{LLVM}" for tool in ("objdump", "readelf", "symbolizer", "cxxfilt")}
LIMIT_S = 1800  # of a tool that takes seconds: the machine may be busy
PACKAGES = f"clang-{LLVM} lld-{LLVM} llvm-{LLVM}"  # in Debian 12 from bookworm-security

# A function's header, and an instruction with its address and, of a branch, its target.
_FUNCTION = re.compile(r"^([0-9a-f]+) <(.+)>:$")
_INSTRUCTION = re.compile(r"^\s+(\S+)\s*(.*?)\s*// ([0-9A-F]+):(?:.*<(.+?)(?:\+0x([0-9a-f]+))?>)?")


@dataclass(frozen=True)
class Kernel:
    name: str  # demangled
    code: list[Instruction]
    resources: dict[str, int]  # of the metadata: vgpr_count, vgpr_spill_count, ...


def compile_flags(arch: str, csrc: Path) -> list[str]:
    """Line tables change no instruction; they tell which primitive an instruction stems from."""
    return [
        *("-x", "hip", f"--offload-arch={arch}", "--offload-device-only", "--no-gpu-bundle-output"),
        *(
            "-nogpuinc",
            "-nogpulib",
            "-std=c++17",
            "-O3",
            "-ffp-contract=off",
            "-gline-tables-only",
            "-Wall",
            "-Wextra",
            "-Werror",
        ),
        *("-include", str(csrc / "quick_reduce/gpu/hip_prelude.h"), f"-I{csrc}"),
    ]


def compile_object(arch: str, csrc: Path, source: Path, target: Path) -> None:
    _run([COMPILER, *compile_flags(arch, csrc), "-c", str(source), "-o", str(target)])


def read_object(path: Path) -> list[Kernel]:
    resources = _resources(_run([TOOLS["readelf"], "--notes", str(path)]))
    functions = _disassemble(path)
    missing = resources.keys() - functions.keys()
    if missing:
        raise RuntimeError(f"{path}: kernels without code: {', '.join(sorted(missing))}")
    extra = functions.keys() - resources.keys()
    if extra:
        raise RuntimeError(f"{path}: functions that were not inlined into a kernel: {', '.join(sorted(extra))}")
    names = _run([TOOLS["cxxfilt"], *functions]).splitlines()
    return [
        Kernel(name, code, resources[symbol]) for (symbol, code), name in zip(functions.items(), names, strict=True)
    ]


def _run(command: list[str], text: str | None = None) -> str:
    done = subprocess.run(command, input=text, capture_output=True, text=True, timeout=LIMIT_S, check=False)
    if done.returncode != 0:
        raise RuntimeError(f"{command[0]} failed ({done.returncode}):\n{done.stderr.strip()}")
    return done.stdout


def _disassemble(path: Path) -> dict[str, list[Instruction]]:
    listing = _run([TOOLS["objdump"], "-d", str(path)])
    starts = {m[2]: int(m[1], 16) for line in listing.splitlines() if (m := _FUNCTION.match(line))}
    functions: dict[str, list[Instruction]] = {}
    current: list[Instruction] = []
    for line in listing.splitlines():
        if m := _FUNCTION.match(line):
            current = functions.setdefault(m[2], [])
        elif m := _INSTRUCTION.match(line):
            target = starts[m[4]] + int(m[5] or "0", 16) if m[4] else None
            current.append(Instruction(int(m[3], 16), m[1], m[2], target, frozenset()))
    sources = _sources(path, [i.address for code in functions.values() for i in code if i.touches_memory()])
    return {
        name: [
            Instruction(i.address, i.mnemonic, i.operands, i.target, sources.get(i.address, frozenset())) for i in code
        ]
        for name, code in functions.items()
    }


def _sources(path: Path, addresses: list[int]) -> dict[int, frozenset[str]]:
    """For each address, the functions it was inlined from."""
    command = [TOOLS["symbolizer"], f"--obj={path}", "--inlines", "--output-style=JSON"]
    answer = _run(command, "".join(f"{address:#x}\n" for address in addresses))
    entries = [json.loads(line) for line in answer.splitlines() if line.strip()]
    return {
        int(entry["Address"], 16): frozenset(frame["FunctionName"].partition("<")[0] for frame in entry["Symbol"])
        for entry in entries
    }


def _resources(notes: str) -> dict[str, dict[str, int]]:
    kernels: dict[str, dict[str, int]] = {}
    fields: dict[str, str] = {}
    # A kernel's own fields are indented by four; the first of them carries the list's dash.
    for dash, key, value in [*re.findall(r"^  (- |  )\.(\w+):[ ]+(\S+)$", notes, re.MULTILINE), ("- ", "", "")]:
        if dash == "- " and "name" in fields:
            kernels[fields["name"]] = {k: int(v) for k, v in fields.items() if v.isdigit()}
            fields = {}
        fields[key] = value
    return kernels
