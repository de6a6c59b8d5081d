"""From the lines of a benchmark to the table that ``--all-reduce auto`` reads (configs/all_reduce)."""

import datetime
import os
import platform
from collections import defaultdict
from pathlib import Path
from typing import Any

from splitrank.comm.selection import NO_LIMIT, load_table
from splitrank.models.dtypes import DTYPES

FOLDER = Path(__file__).parents[1] / "configs" / "all_reduce"


def write_table(
    lines: list[dict[str, Any]], target: str = "cpu", command: str = "bench_all_reduce.py", folder: Path = FOLDER
) -> Path:
    """Replaces the rows that ``lines`` measured, keeps the others. Lines have world_size, dtype, bytes, and the
    microseconds one_shot_us, two_shot_us and gloo_us (torch's)."""
    sizes: dict[tuple[int, int], list[dict[str, Any]]] = defaultdict(list)
    for line in lines:
        if line["what"] == "all-reduce":
            sizes[line["world_size"], DTYPES[line["dtype"]].num_bytes].append(line)
    file = folder / f"{target}.toml"
    rows = {**_old_rows(file), **{key: _row(*key, measured) for key, measured in sizes.items()}}
    today = datetime.datetime.now(datetime.UTC).date()
    head = f"# Written by scripts/{command} --write-table, {today}, on {os.cpu_count()} cores of {_processor()}.\n"
    file.write_text(f'{head}target = "{target}"\nthresholds = [\n{"".join(rows[key] for key in sorted(rows))}]\n')
    return file


def _row(world_size: int, element_bytes: int, measured: list[dict[str, Any]]) -> str:
    measured = sorted(measured, key=lambda line: int(line["bytes"]))
    one_shot = _last(measured, lambda line: line["one_shot_us"] <= line["two_shot_us"])
    quick = _last(measured, lambda line: min(line["one_shot_us"], line["two_shot_us"]) <= line["gloo_us"])
    limit = "" if quick == measured[-1]["bytes"] else f", two_shot_bytes = {max(quick, one_shot)}"
    sizes = f"world_size = {world_size}, element_bytes = {element_bytes}"
    return f"    {{ {sizes}, one_shot_bytes = {min(one_shot, quick)}{limit} }},\n"


def _last(measured: list[dict[str, Any]], holds: Any) -> int:
    """The largest size up to which it holds without a gap; 0 if not even for the smallest."""
    size = 0
    for line in measured:
        if not holds(line):
            break
        size = int(line["bytes"])
    return size


def _old_rows(file: Path) -> dict[tuple[int, int], str]:
    table = load_table(file.stem, file.parent)
    rows = {}
    for (world_size, element_bytes), limits in (table.thresholds if table else {}).items():
        limit = "" if limits.two_shot_bytes == NO_LIMIT else f", two_shot_bytes = {limits.two_shot_bytes}"
        sizes = f"world_size = {world_size}, element_bytes = {element_bytes}"
        rows[world_size, element_bytes] = f"    {{ {sizes}, one_shot_bytes = {limits.one_shot_bytes}{limit} }},\n"
    return rows


def _processor() -> str:
    for line in Path("/proc/cpuinfo").read_text().splitlines():
        if line.startswith("model name"):
            return line.partition(":")[2].strip()
    return platform.machine()
