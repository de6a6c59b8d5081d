"""What ``pip install`` brings: real files under the one import name, the demo checkpoint among them."""

import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

from tests.support.limits import BUILD_S, PROGRAM_S, scaled

ROOT = Path(__file__).parents[1]
pytestmark = pytest.mark.timeout(BUILD_S)  # the first test compiles what has changed since
BUILT_BY_SETUP = {"build-dir": "build/editable", "cmake.define.SPLITRANK_FAST_ON": "this"}
INTERPRETER = f"cp{sys.version_info.major}{sys.version_info.minor}"


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> zipfile.ZipFile:
    """Of the modules that ``scripts/setup`` has compiled for the editable install: to compile again takes minutes."""
    return build("wheel", ROOT, tmp_path_factory.mktemp("wheel"), BUILT_BY_SETUP)


def build(kind: str, source: Path, folder: Path, settings: dict[str, str]) -> zipfile.ZipFile:
    """What ``pip install`` (``kind`` "wheel") or ``pip install -e`` ("editable") of ``source`` would install."""
    program = f"from scikit_build_core import build; build.build_{kind}({str(folder)!r}, {settings!r})"
    finished = subprocess.run(
        [sys.executable, "-c", program], cwd=source, capture_output=True, text=True, timeout=scaled(BUILD_S)
    )
    assert finished.returncode == 0, finished.stdout[-2000:] + finished.stderr
    (file,) = folder.glob("splitrank-*.whl")
    return zipfile.ZipFile(file)


WITHOUT_COMPILING = {"wheel.cmake": "false"}


def installed_files(wheel: zipfile.ZipFile) -> set[str]:
    """All but the compiled modules and the package's metadata."""
    return {name for name in wheel.namelist() if not name.endswith(".so") and ".dist-info/" not in name}


def copy_with_links_as_text(folder: Path) -> None:
    """The parts of the repository that a wheel is made of, as an archive holds them that knows no links."""
    for name in ("splitrank", "serving", "models", "comm", "configs"):
        shutil.copytree(ROOT / name, folder / name, symlinks=True, ignore=shutil.ignore_patterns("__pycache__"))
    for name in ("pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, folder / name)
    links = [path for path in (folder / "splitrank").iterdir() if path.is_symlink()]
    assert len(links) == 6
    for link in links:
        target = str(link.readlink())
        link.unlink()
        link.write_text(target)


def test_every_module_is_in_the_wheel(wheel: zipfile.ZipFile) -> None:
    expected = {
        f"splitrank/{path.relative_to(ROOT)}"
        for folder in ("serving", "models", "comm")
        for path in (ROOT / folder).rglob("*.py")
    }
    assert "splitrank/serving/cli.py" in expected
    assert expected <= set(wheel.namelist())


def test_the_wheel_is_for_this_interpreter(wheel: zipfile.ZipFile) -> None:
    (name,) = (name for name in wheel.namelist() if name.endswith("WHEEL"))
    head = wheel.read(name).decode()
    assert f"Tag: {INTERPRETER}-{INTERPRETER}-linux_x86_64" in head
    assert "Root-Is-Purelib: false" in head


def test_the_compiled_module_is_in_the_wheel_and_imports(wheel: zipfile.ZipFile, tmp_path: Path) -> None:
    compiled = sorted(name for name in wheel.namelist() if name.endswith(".so"))
    modules = {Path(name).name.split(".")[0]: name for name in compiled}
    assert modules.keys() - {"_quick_reduce_gpu"} == {
        "_cpu_ops",
        "_quick_reduce_cpu",
    }  # only with its compiler
    module = Path(wheel.extract(modules["_quick_reduce_cpu"], tmp_path))
    program = f"""
import importlib.util as util
spec = util.spec_from_file_location("_quick_reduce_cpu", {str(module)!r})
module = util.module_from_spec(spec)
spec.loader.exec_module(module)
print(module.TARGET)
"""
    finished = subprocess.run(
        [sys.executable, "-c", program], cwd=tmp_path, capture_output=True, text=True, timeout=scaled(PROGRAM_S)
    )
    assert finished.stdout == "cpu\n", finished.stderr


def test_stubs_are_in_the_wheel_and_no_sources_or_pages(wheel: zipfile.ZipFile) -> None:
    names = wheel.namelist()
    stubs = {f"splitrank/{name}.pyi" for name in ("_cpu_ops", "_quick_reduce_cpu", "_quick_reduce_gpu")}
    assert stubs | {"splitrank/py.typed"} <= set(names)
    assert not [name for name in names if name.endswith((".h", ".cc", ".cu", ".inc", ".md"))]


def test_an_archive_that_holds_links_as_text_gives_the_same_wheel(wheel: zipfile.ZipFile, tmp_path: Path) -> None:
    source, out = tmp_path / "source", tmp_path / "out"
    source.mkdir()
    copy_with_links_as_text(source)
    from_archive = build("wheel", source, out, WITHOUT_COMPILING)
    assert installed_files(from_archive) == installed_files(wheel)
    assert from_archive.read("splitrank/serving/cli.py") == (ROOT / "serving" / "cli.py").read_bytes()


def test_an_editable_install_adds_only_the_repository_to_the_path(tmp_path: Path) -> None:
    wheel = build("editable", ROOT, tmp_path, WITHOUT_COMPILING)
    (name,) = (name for name in wheel.namelist() if name.endswith(".pth"))
    assert wheel.read(name).decode().splitlines() == ["import _editable_skbc_splitrank", str(ROOT)]


def test_nothing_else_is_installed(wheel: zipfile.ZipFile) -> None:
    assert {name.split("/")[0].split("-")[0] for name in wheel.namelist()} == {"splitrank"}


@pytest.mark.parametrize("name", ["demo", "all_reduce", "kernels"])
def test_the_demo_checkpoint_and_the_tables_are_package_data(wheel: zipfile.ZipFile, name: str) -> None:
    for file in (ROOT / "configs" / name).iterdir():
        if file.name != "README.md":
            assert wheel.read(f"splitrank/{name}/{file.name}") == file.read_bytes()


def test_the_page_is_in_the_wheel(wheel: zipfile.ZipFile) -> None:
    for file in (ROOT / "serving" / "http" / "page").iterdir():
        assert wheel.read(f"splitrank/serving/http/page/{file.name}") == file.read_bytes()


def test_the_command_is_declared(wheel: zipfile.ZipFile) -> None:
    (name,) = (name for name in wheel.namelist() if name.endswith("entry_points.txt"))
    assert "splitrank = splitrank.serving.cli:console" in wheel.read(name).decode().replace("=splitrank", "= splitrank")
