"""From the lines of a benchmark to the tables that ``--all-reduce auto`` reads (configs/all_reduce)."""

import datetime
import re
from collections import defaultdict
from collections.abc import Callable, Iterable
from dataclasses import fields
from math import inf
from pathlib import Path
from typing import Any

from splitrank.comm.selection import CODECS, NO_LIMIT, Thresholds, load_table
from splitrank.models.dtypes import DTYPES

FOLDER = Path(__file__).parents[1] / "configs" / "all_reduce"
Line = dict[str, Any]
Rows = dict[tuple[int, int], Thresholds]  # by (world size, bytes of an element)


def host_rows(lines: Iterable[Line]) -> Rows:
    """Of ``bench_all_reduce.py``, whose lines have world_size, dtype, bytes, and the microseconds one_shot_us,
    two_shot_us and gloo_us (torch's)."""
    sizes: dict[tuple[int, int], list[Line]] = defaultdict(list)
    for line in lines:
        if line["what"] == "all-reduce":
            times = {name: line[f"{key}_us"] for name, key in (("one-shot", "one_shot"), ("two-shot", "two_shot"))}
            times["torch"] = line["gloo_us"]
            key = line["world_size"], DTYPES[line["dtype"]].num_bytes
            sizes[key].append({"bytes": line["bytes"], "us": times})
    return {key: _full_precision(measured) for key, measured in sizes.items()}


def gpu_rows(lines: Iterable[Line], world_size: int) -> Rows:
    """Of ``bench_all_reduce_gpu.py``, whose lines have bytes and the microseconds of each way. It measures bfloat16;
    float32 moves the same bytes for a message of as many bytes, and codes fewer elements."""
    measured = [{"bytes": line["bytes"], "us": {**line["us"], "torch": line["us"]["nccl"]}} for line in lines]
    row = _with_codecs(_full_precision(measured), measured, world_size)
    return {(world_size, 2): row, (world_size, 4): row}


def write_table(rows: Rows, target: str, measured: str, folder: Path = FOLDER) -> Path:
    """Replaces the rows of the table that ``rows`` has, keeps the others. ``measured`` says where and by what command;
    a line for each number of ranks keeps it."""
    file = folder / f"{target}.toml"
    table = load_table(target, folder)
    heads = dict(re.findall(r"^# (\d+) ranks: (.*)$", file.read_text(encoding="utf-8"), re.MULTILINE)) if table else {}
    today = datetime.datetime.now(datetime.UTC).date()
    heads |= {str(world_size): f"{today}, {measured}" for world_size, _ in rows}
    head = "".join(f"# {ranks} ranks: {text}\n" for ranks, text in sorted(heads.items()))
    all_rows = {**(table.thresholds if table else {}), **rows}
    body = "".join(_toml(*key, row) for key, row in sorted(all_rows.items()))
    file.write_text(f'{head}target = "{target}"\nthresholds = [\n{body}]\n', encoding="utf-8")
    return file


def _toml(world_size: int, element_bytes: int, row: Thresholds) -> str:
    given = {field.name: getattr(row, field.name) for field in fields(row) if getattr(row, field.name) != field.default}
    pairs = {"world_size": world_size, "element_bytes": element_bytes, **given}
    return f"    {{ {', '.join(f'{key} = {value}' for key, value in pairs.items())} }},\n"


def _full_precision(measured: list[Line]) -> Thresholds:
    quick = _last(measured, lambda us: _best(us, "tagged", "one-shot", "two-shot") <= us["torch"])
    tagged = _last(measured, lambda us: _best(us, "tagged") <= _best(us, "one-shot", "two-shot"))
    one_shot = _last(measured, lambda us: _best(us, "tagged", "one-shot") <= _best(us, "two-shot"))
    largest = max(line["bytes"] for line in measured)
    return Thresholds(
        one_shot_bytes=min(one_shot, quick),
        two_shot_bytes=NO_LIMIT if quick == largest else quick,
        tagged_bytes=min(tagged, quick),
    )


def _with_codecs(row: Thresholds, measured: list[Line], world_size: int) -> Thresholds:
    """A message is coded where each codec is faster than full precision, since a codec costs precision. Where coded
    messages go is asked of INT8, the codec that is the least coarse."""
    coded_ways = {codec: [f"{way}+{codec}" for way in ("tagged", "one-shot", "two-shot")] for codec in CODECS[1:]}

    def full_precision_wins(us: dict[str, float]) -> bool:
        slowest_codec = max(_best(us, *ways) for ways in coded_ways.values())
        return _best(us, "tagged", "one-shot", "two-shot") <= slowest_codec

    uncoded = _last(measured, full_precision_wins)
    limits = {"uncoded_bytes": uncoded}
    if world_size == 2:
        tagged, one_shot, two_shot = coded_ways["int8"]
        coded = [line for line in measured if line["bytes"] > uncoded]
        limits["coded_tagged_bytes"] = _last(coded, lambda us: _best(us, tagged) <= _best(us, one_shot, two_shot))
        beyond = [line for line in coded if line["bytes"] > limits["coded_tagged_bytes"]]
        limits["coded_one_shot_bytes"] = _last(beyond, lambda us: _best(us, one_shot) <= _best(us, two_shot))
    return Thresholds(row.one_shot_bytes, row.two_shot_bytes, row.tagged_bytes, **limits)


def _best(us: dict[str, float], *ways: str) -> float:
    """The fastest of those that were measured at this size."""
    return min((us[way] for way in ways if way in us), default=inf)


def _last(measured: list[Line], holds: Callable[[dict[str, float]], bool]) -> int:
    """The largest size up to which it holds without a gap; 0 if not even for the smallest."""
    size = 0
    for line in sorted(measured, key=lambda line: int(line["bytes"])):
        if not holds(line["us"]):
            break
        size = int(line["bytes"])
    return size
