"""The run's record, JSON lines: {"step", "loss", ...} and, at evaluations, {"step", "accuracy": {...}}."""

import json
from pathlib import Path
from typing import Any


class Curves:
    """Appends. Lines after ``step`` are of steps that a resumed run does again: they go."""

    def __init__(self, path: Path, step: int) -> None:
        self._path = path
        kept = [line for line in read_curves(path) if line["step"] <= step] if step else []
        path.write_text("".join(json.dumps(line) + "\n" for line in kept), encoding="utf-8")

    def write(self, **fields: Any) -> None:
        line = json.dumps({name: _rounded(value) for name, value in fields.items()})
        with self._path.open("a", encoding="utf-8") as file:
            file.write(line + "\n")
        print(line, flush=True)


def read_curves(path: Path) -> list[dict[str, Any]]:
    if not path.exists():
        return []
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines() if line.strip()]


def _rounded(value: Any) -> Any:
    return float(f"{value:.6g}") if isinstance(value, float) else value
