"""What ``pip install`` brings: real files under the one import name, the demo checkpoint among them."""

import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> zipfile.ZipFile:
    folder = tmp_path_factory.mktemp("wheel")
    program = f"from scikit_build_core.build import build_wheel; build_wheel({str(folder)!r})"
    finished = subprocess.run([sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True, timeout=100)
    assert finished.returncode == 0, finished.stderr
    (file,) = folder.glob("splitrank-*-py3-none-any.whl")
    return zipfile.ZipFile(file)


def test_every_module_is_in_the_wheel(wheel: zipfile.ZipFile) -> None:
    expected = {
        f"splitrank/{path.relative_to(ROOT)}"
        for folder in ("serving", "models", "comm")
        for path in (ROOT / folder).rglob("*.py")
    }
    assert "splitrank/serving/cli.py" in expected
    assert expected <= set(wheel.namelist())


def test_nothing_else_is_installed(wheel: zipfile.ZipFile) -> None:
    assert {name.split("/")[0].split("-")[0] for name in wheel.namelist()} == {"splitrank"}


def test_the_demo_checkpoint_is_package_data(wheel: zipfile.ZipFile) -> None:
    for file in (ROOT / "configs" / "demo").iterdir():
        if file.name != "README.md":
            assert wheel.read(f"splitrank/demo/{file.name}") == file.read_bytes()


def test_the_command_is_declared(wheel: zipfile.ZipFile) -> None:
    (name,) = (name for name in wheel.namelist() if name.endswith("entry_points.txt"))
    assert "splitrank = splitrank.serving.cli:console" in wheel.read(name).decode().replace("=splitrank", "= splitrank")
