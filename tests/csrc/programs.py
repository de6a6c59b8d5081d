"""Compiles the C++ programs of this folder, and runs them with a limit."""

import json
import shutil
import subprocess
from collections.abc import Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest

from tests.support.limits import BUILD_S, PROOF_S, scaled

FOLDER = Path(__file__).parent
CSRC = FOLDER.parents[1] / "csrc"
# Of spin's programs, 350 KB of C each. tcc takes 0.03 s for one, clang 0.5 at -O0, gcc twice as long; all three make
# programs that search as fast. What searches for long is worth clang's -O2.
C_COMPILERS = ("tcc", "clang-22", "gcc")
SEARCH_MIB = 3000
PROOF = [pytest.mark.proof, pytest.mark.timeout(PROOF_S)]
# As the shipped host build: sums and codecs give the same bits everywhere.
FLAGS = ("-std=c++20", "-Wall", "-Wextra", "-Werror", "-ffp-contract=off")


def build(sources: Iterable[Path], program: Path, *flags: str, headers: Path = CSRC) -> Path:
    """Compiles what is not yet an object, two files at a time."""
    program.parent.mkdir(parents=True, exist_ok=True)

    def to_object(source: Path) -> Path:
        if source.suffix == ".o":
            return source
        return compile_one(source, program.parent / f"{program.name}.{source.stem}.o", *flags, headers=headers)

    with ThreadPoolExecutor(2) as compilers:
        objects = list(compilers.map(to_object, sources))
    link = ["g++", "-o", str(program), *map(str, objects), *(flag for flag in flags if flag.startswith("-fsanitize"))]
    run_compiler([*link, "-pthread"])
    return program


def compile_one(source: Path, target: Path, *flags: str, headers: Path = CSRC) -> Path:
    folders = [f"-I{headers}", f"-I{source.parent}"]
    run_compiler(["g++", *FLAGS, *flags, *folders, "-c", str(source), "-o", str(target)])
    return target


def run_compiler(command: Sequence[str], folder: Path | None = None) -> None:
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True, timeout=scaled(BUILD_S), check=False)
    assert done.returncode == 0, f"{' '.join(command)}\n{done.stdout}{done.stderr}"


def compile_search(model: Path, settings: str, folder: Path, large: bool = False) -> Path:
    """The program that searches all interleavings of ``model``, made with these ``settings`` for its preprocessor."""
    defines = [f"-D{setting}" for setting in settings.split()]
    run_compiler(["spin", "-a", *defines, str(model)], folder)
    compiler = next(name for name in C_COMPILERS[1 if large else 0 :] if shutil.which(name))
    # Compressed states need a fifth of the memory, of which a small search takes 100 MiB, but more time.
    options = ["-O2", "-DCOLLAPSE"] if large else ["-O0"]
    options += ["-w", "-DSAFETY", f"-DMEMLIM={SEARCH_MIB}"]
    run_compiler([compiler, *options, "-o", "pan", "pan.c"], folder)
    return folder / "pan"


@dataclass(frozen=True)
class Finished:
    returncode: int
    stdout: str
    stderr: str

    def json(self) -> dict[str, Any]:
        report: dict[str, Any] = json.loads(self.stdout.splitlines()[-1])
        return report


def run(program: Path, *arguments: str, seconds: float = PROOF_S) -> Finished:
    command = [str(program), *arguments]
    done = subprocess.run(command, capture_output=True, text=True, timeout=scaled(seconds), check=False)
    return Finished(done.returncode, done.stdout, done.stderr)


@dataclass(frozen=True)
class Patch:
    """A place of a header, and what a mutation writes there instead."""

    file: str
    old: str
    new: str
    behind: str = ""  # what follows the place and stays, if the place alone is not the only one


def mutated_headers(target: Path, patches: Sequence[Patch]) -> Path:
    """A copy of the headers with the patches; each place must be there exactly once, and no two overlap."""
    shutil.copytree(CSRC / "quick_reduce", target / "quick_reduce")
    for file in {patch.file for patch in patches}:
        path = target / "quick_reduce" / file
        text = path.read_text(encoding="utf-8")
        path.write_text(patched(text, [patch for patch in patches if patch.file == file]), encoding="utf-8")
    return target


def patched(text: str, patches: Sequence[Patch]) -> str:
    """Each place is looked for in ``text`` itself, not in what another patch wrote."""
    for patch in patches:
        found = text.count(patch.old + patch.behind)
        assert found == 1, f"{patch.file} holds {found} times: {patch.old + patch.behind}"
    begins = [text.index(patch.old + patch.behind) for patch in patches]
    places = sorted((begin, begin + len(patch.old), patch.new) for begin, patch in zip(begins, patches, strict=True))
    assert all(end <= begin for (_, end, _), (begin, _, _) in pairwise(places)), "two patches change the same place"
    for begin, end, new in reversed(places):
        text = text[:begin] + new + text[end:]
    return text
