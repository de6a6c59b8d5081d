"""The clients' packages, pinned, in folders of their own under build/: they are no dependencies of this project."""

import hashlib
import os
import shutil
import subprocess
import sys
from pathlib import Path

HERE = Path(__file__).parent
BUILD = HERE.parents[1] / "build" / "clients"
GUIDELLM = "guidellm==0.8.1"  # brings torch with CUDA, 6 GB: only when asked for
LIMIT_S = 3600


def python_clients() -> Path:
    """The folder of programs of an environment with ``requirements.txt``."""
    return _environment("venv", ["-r", str(HERE / "requirements.txt")], (HERE / "requirements.txt").read_text())


def guidellm() -> Path:
    return _environment("guidellm", [GUIDELLM], GUIDELLM)


def node_clients() -> Path | None:
    """The folder with the npm packages and the programs that use them; None where there is no npm."""
    if shutil.which("npm") is None:
        return None
    folder = BUILD / "node"
    folder.mkdir(parents=True, exist_ok=True)
    for file in (*HERE.glob("*.mjs"), HERE / "package.json"):
        shutil.copy(file, folder)
    wanted = (HERE / "package.json").read_text()
    if not _is_up_to_date(folder, wanted):
        _run(["npm", "install", "--silent", "--no-audit", "--no-fund"], folder)
        _mark(folder, wanted)
    return folder


def _environment(name: str, requirements: list[str], wanted: str) -> Path:
    folder = BUILD / name
    if not _is_up_to_date(folder, wanted):
        _run([sys.executable, "-m", "venv", str(folder)], BUILD.parent)
        _run([str(folder / "bin" / "pip"), "install", "--quiet", *requirements], BUILD.parent)
        _mark(folder, wanted)
    return folder / "bin"


def _is_up_to_date(folder: Path, wanted: str) -> bool:
    stamp = folder / "installed"
    return stamp.exists() and stamp.read_text() == _digest(wanted)


def _mark(folder: Path, wanted: str) -> None:
    (folder / "installed").write_text(_digest(wanted))


def _digest(wanted: str) -> str:
    return hashlib.sha256(wanted.encode()).hexdigest()


def _run(command: list[str], folder: Path) -> None:
    print(f"$ {' '.join(command)}", file=sys.stderr, flush=True)
    subprocess.run(command, cwd=folder, check=True, timeout=LIMIT_S, stdin=subprocess.DEVNULL, env=os.environ)
