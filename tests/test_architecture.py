"""The rules of the house. Those that linters hold as well are here for what linters cannot see at a glance."""

import re
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.support.limits import PROGRAM_S, scaled
from tests.support.source_rules import environment_reads, imports_of, too_long_file, too_long_functions

ROOT = Path(__file__).parents[1]
CODE_FOLDERS = ("serving", "models", "comm")
ALL_FOLDERS = (*CODE_FOLDERS, "scripts", "tests")
RANK_FOLDER = ROOT / "serving" / "rank"  # only a rank process imports it: front and engine start without torch

Rule = Callable[[str], list[str]]


def sources(*folders: str) -> Iterator[Path]:
    for folder in folders:
        yield from (path for path in sorted((ROOT / folder).rglob("*.py")) if "__pycache__" not in path.parts)


def complaints(rule: Rule, *folders: str, exempt: tuple[str, ...] = ()) -> list[str]:
    return [
        f"{path.relative_to(ROOT)}: {complaint}"
        for path in sources(*folders)
        if str(path.relative_to(ROOT)) not in exempt
        for complaint in rule(path.read_text(encoding="utf-8"))
    ]


def test_files_stay_short() -> None:
    assert complaints(too_long_file, *ALL_FOLDERS) == []


def test_functions_stay_short() -> None:
    assert complaints(too_long_functions, *ALL_FOLDERS) == []


def test_one_module_reads_the_environment() -> None:
    assert complaints(environment_reads, *CODE_FOLDERS, exempt=("serving/options/config.py",)) == []


def test_only_comm_speaks_to_other_ranks() -> None:
    assert complaints(lambda source: imports_of(source, "torch.distributed"), "serving", "models") == []


def test_only_comm_knows_the_compiled_all_reduce() -> None:
    def names_it(source: str) -> list[str]:
        return ["names a compiled module"] if "_quick_reduce_" in source else []

    assert complaints(names_it, "serving", "models") == []
    assert complaints(names_it, "comm") == ["comm/native.py: names a compiled module"]


def test_nothing_that_ships_imports_what_does_not() -> None:
    forbidden = ("transformers", "pickle", "scripts", "tests", "serving", "models", "comm")
    assert complaints(lambda source: imports_of(source, *forbidden), *CODE_FOLDERS) == []


def test_the_rules_see_what_they_should() -> None:
    assert too_long_file("pass\n" * 401)
    assert not too_long_file("pass\n" * 400)
    assert too_long_functions("def f():\n" + "    pass\n" * 60)
    assert environment_reads("import os\nx = os.environ['A']") == ["line 2 uses os.environ"]
    assert environment_reads("from os import getenv") == ["imports os.getenv"]
    assert imports_of("def f():\n    from torch import distributed", "torch.distributed")
    assert not imports_of("import torch_geometric", "torch")


def test_every_folder_has_its_page() -> None:
    missing = [folder for folder in (*ALL_FOLDERS, "csrc", "configs") if not (ROOT / folder / "README.md").is_file()]
    assert missing == []


DATA_LINKS = [("demo", "configs/demo"), ("all_reduce", "configs/all_reduce"), ("kernels", "configs/kernels")]


@pytest.mark.parametrize(("link", "target"), [(name, name) for name in CODE_FOLDERS] + DATA_LINKS)
def test_the_package_links_to_the_top_level_folders(link: str, target: str) -> None:
    assert (ROOT / "splitrank" / link).readlink() == Path("..") / target


def test_front_and_engine_load_no_torch() -> None:
    """Imports every module of serving but the ranks' in one process; the first that brings torch is named."""
    modules = [
        ".".join(("splitrank", *path.relative_to(ROOT).with_suffix("").parts))
        for path in sources("serving")
        if path.parent != RANK_FOLDER and path.stem != "__main__"
    ]
    assert "splitrank.serving.engine.engine" in modules
    program = (
        "import importlib, sys\n"
        f"for name in {modules!r}:\n"
        "    importlib.import_module(name)\n"
        "    loaded = [heavy for heavy in ('torch', 'transformers') if heavy in sys.modules]\n"
        "    if loaded: sys.exit(f'{name} loads {loaded}')\n"
    )
    finished = subprocess.run(
        [sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True, timeout=scaled(PROGRAM_S)
    )
    assert finished.returncode == 0, finished.stderr


@pytest.mark.parametrize(
    ("file", "code", "allowed"),
    [
        ("serving/x.py", "from torch import distributed\n\nprint(distributed)\n", False),
        ("models/x.py", "import torch.distributed as dist\n\nprint(dist)\n", False),
        ("comm/x.py", "import torch.distributed as dist\n\nprint(dist)\n", True),
        ("serving/x.py", 'import os\n\nprint(os.environ["A"])\n', False),
        ("serving/options/config.py", 'import os\n\nprint(os.environ["A"])\n', True),
        ("models/x.py", "import pickle\n\nprint(pickle)\n", False),
    ],
)
def test_ruff_bans_what_the_design_bans(file: str, code: str, allowed: bool) -> None:
    command = [
        sys.executable,
        "-m",
        "ruff",
        "check",
        "--no-cache",
        "--output-format=concise",
        "--stdin-filename",
        file,
        "-",
    ]
    finished = subprocess.run(command, cwd=ROOT, input=code, capture_output=True, text=True, timeout=scaled(PROGRAM_S))
    assert ("TID251" in finished.stdout) != allowed, finished.stdout + finished.stderr


def test_proofs_lie_where_the_script_looks_for_them() -> None:
    """``scripts/test`` collects only these folders for the process that runs the proofs."""
    (line,) = (line for line in (ROOT / "scripts/test").read_text().splitlines() if line.startswith("PROOFS=("))
    folders = [ROOT / folder for folder in line[len("PROOFS=(") :].split(")")[0].split()]
    marks = re.compile("mark[.]proof|[*]PROOF|= [P]ROOF")  # as files write them, but for this one
    marked = [path for path in sources("tests") if marks.search(path.read_text()) and path.name.startswith("test_")]
    assert len(marked) > 5
    assert [path for path in marked if not any(path.is_relative_to(folder) for folder in folders)] == []
