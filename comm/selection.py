"""Selects the all-reduce of a message: backends, codecs and measured tables. No torch, since the front uses it, too.

For each world size and element size, a table says up to how many bytes one-shot is fastest, and up to how many bytes
two-shot; torch sums larger messages. NVIDIA's table has ``tagged`` before them, and limits for messages with a codec.
``scripts/bench_all_reduce.py --write-table`` writes the table of the CPU, ``bench_all_reduce_gpu.py`` that of NVIDIA.
"""

import tomllib
from dataclasses import dataclass, fields, replace
from importlib.util import find_spec
from pathlib import Path
from typing import Any

BACKENDS = ("auto", "quick", "torch")
CODECS = ("none", "int8", "int6", "int4")
WORLD_SIZES = (2, 4, 8)  # of the quick all-reduce; 1 is the identity
NO_LIMIT = 2**63


@dataclass(frozen=True)
class AllReduceOptions:
    """What the user asked for."""

    backend: str = "auto"
    codec: str = "none"

    def __post_init__(self) -> None:
        _one_of("all_reduce", self.backend, BACKENDS)
        _one_of("all_reduce_codec", self.codec, CODECS)
        if self.codec != "none" and self.backend == "torch":
            raise ValueError(f"all_reduce_codec {self.codec}: torch has no codecs; give --all-reduce quick")

    def check_tensor_parallel(self, tp_size: int) -> None:
        """``ValueError`` if so many tensor ranks do not support the options."""
        if self.codec != "none" and tp_size == 1:
            raise ValueError(f"all_reduce_codec {self.codec}: with tp 1 nothing is reduced")
        if tp_size == 1 or tp_size in WORLD_SIZES:
            return
        reason = f"the quick all-reduce sums over 2, 4 or 8 tensor ranks, not over {tp_size}"
        if self.backend == "quick":
            raise ValueError(f"all_reduce quick: {reason}; give auto or torch")
        if self.codec != "none":
            raise ValueError(f"all_reduce_codec {self.codec}: {reason}, and torch has no codecs")


def _one_of(name: str, value: str, allowed: tuple[str, ...]) -> None:
    if value not in allowed:
        raise ValueError(f"{name} must be one of {', '.join(allowed)}, not {value!r}")


@dataclass(frozen=True)
class Thresholds:
    """The largest message in bytes of each algorithm: tagged, one-shot, two-shot; torch sums larger ones.

    If there is a codec, messages above ``uncoded_bytes`` (default: ``one_shot_bytes``) are coded. Between two ranks
    they go tagged or one-shot, by size; all others go two-shot.
    """

    one_shot_bytes: int
    two_shot_bytes: int = NO_LIMIT
    tagged_bytes: int = 0
    uncoded_bytes: int | None = None
    coded_tagged_bytes: int = 0
    coded_one_shot_bytes: int = NO_LIMIT

    @property
    def full_precision_bytes(self) -> int:
        """Messages up to this size are not coded."""
        return self.one_shot_bytes if self.uncoded_bytes is None else self.uncoded_bytes

    def way(self, num_bytes: int, codec: str, world_size: int) -> tuple[str, str]:
        """Algorithm and codec of a message that torch does not sum."""
        if codec == "none" or num_bytes <= self.full_precision_bytes:
            return self._full_precision(num_bytes), "none"
        # One-shot and tagged send the whole message to each peer. Between two ranks that is as much as two-shot sends.
        if world_size > 2:
            return "two-shot", codec
        if num_bytes <= self.coded_tagged_bytes:
            return "tagged", codec
        return ("one-shot" if num_bytes <= self.coded_one_shot_bytes else "two-shot"), codec

    def _full_precision(self, num_bytes: int) -> str:
        if num_bytes <= self.tagged_bytes:
            return "tagged"
        return "one-shot" if num_bytes <= self.one_shot_bytes else "two-shot"

    def __str__(self) -> str:
        one, two = format_bytes(self.one_shot_bytes), format_bytes(self.two_shot_bytes)
        tagged = f"tagged to {format_bytes(self.tagged_bytes)}, " if self.tagged_bytes else ""
        limit = "" if self.two_shot_bytes == NO_LIMIT else f" to {two}"
        return f"{tagged}one-shot to {one}, two-shot above{limit}"


@dataclass(frozen=True)
class SelectionTable:
    """Thresholds of one target by (world size, bytes of an element), and where they were read."""

    target: str
    source: str
    thresholds: dict[tuple[int, int], Thresholds]


# For ``quick`` on a target without a measured table.
_UNMEASURED = Thresholds(16 * 2**10)


def tables_folder() -> Path:
    package = find_spec("splitrank")
    assert package is not None
    assert package.origin is not None
    return Path(package.origin).parent / "all_reduce"


def load_table(target: str, folder: Path | None = None) -> SelectionTable | None:
    """The measured table of ``target``, None if there is none. ``ValueError`` names the file and the key."""
    file = (folder or tables_folder()) / f"{target}.toml"
    if not file.is_file():
        return None
    try:
        raw = tomllib.loads(file.read_text(encoding="utf-8"))
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise ValueError(f"{file}: not valid TOML: {error}") from None
    if raw.get("target") != target:
        raise ValueError(f"{file}: target must be {target!r}, not {raw.get('target')!r}")
    rows = [_row(file, row) for row in raw.get("thresholds", [])]
    return SelectionTable(target, file.name, dict(rows))


def _row(file: Path, row: dict[str, Any]) -> tuple[tuple[int, int], Thresholds]:
    required = {"world_size", "element_bytes", "one_shot_bytes"}
    optional = {field.name for field in fields(Thresholds)} - required
    if not required <= set(row) <= required | optional:
        may = ", ".join(sorted(optional))
        raise ValueError(f"{file}: a row has {', '.join(sorted(required))} and may have {may}, not {row}")
    if not all(type(value) is int and value >= 0 for value in row.values()):
        raise ValueError(f"{file}: every value of a row is a number of 0 or more: {row}")
    sizes = dict(row)
    key = (sizes.pop("world_size"), sizes.pop("element_bytes"))
    limits = Thresholds(**sizes)
    if limits.two_shot_bytes < limits.one_shot_bytes:
        raise ValueError(f"{file}: two_shot_bytes is below one_shot_bytes: {row}")
    if limits.tagged_bytes > limits.one_shot_bytes:
        raise ValueError(f"{file}: tagged_bytes is above one_shot_bytes: {row}")
    return key, limits


@dataclass(frozen=True)
class Selection:
    """The decision for a stage: thresholds by bytes of an element. Without ``quick`` torch sums everything."""

    quick: bool
    reason: str  # for the line at start
    thresholds: dict[int, Thresholds]


def select(options: AllReduceOptions, world_size: int, target: str, folder: Path | None = None) -> Selection:
    """Resolves ``options`` on a target. With ``quick`` torch sums nothing; with ``auto`` the table decides."""
    options.check_tensor_parallel(world_size)
    if options.backend == "torch":
        return Selection(False, "as asked", {})
    if world_size not in WORLD_SIZES:
        return Selection(False, f"the quick all-reduce sums over 2, 4 or 8 ranks, not over {world_size}", {})
    table = load_table(target, folder)
    rows = {width: table.thresholds.get((world_size, width)) if table else None for width in (2, 4)}
    measured = {width: row for width, row in rows.items() if row is not None}
    if options.backend == "auto" and len(measured) < len(rows):
        reason = f"no measured table for {world_size} ranks on {target}"
        if options.codec != "none":
            raise ValueError(f"all_reduce_codec {options.codec}: {reason}, so auto is torch; give --all-reduce quick")
        return Selection(False, f"{reason}; --all-reduce quick is there", {})
    limits = {width: measured.get(width, _UNMEASURED) for width in rows}
    if options.backend == "quick" or options.codec != "none":
        limits = {width: replace(row, two_shot_bytes=NO_LIMIT) for width, row in limits.items()}
    return Selection(True, table.source if table and measured else "unmeasured", limits)


def describe(options: AllReduceOptions, selection: Selection, stage: int, num_bytes: int) -> str:
    """The line at start; ``num_bytes``: the communicator's memory on a rank."""
    if not selection.quick:
        return f"stage {stage}: all-reduce torch ({selection.reason})"
    limits = "; ".join(f"{8 * width} bit: {_ways(row, options)}" for width, row in sorted(selection.thresholds.items()))
    memory = f"{num_bytes / 2**20:.1f} MiB a rank"
    return f"stage {stage}: all-reduce quick, codec {options.codec}; {limits} ({selection.reason}); {memory}"


def _ways(limits: Thresholds, options: AllReduceOptions) -> str:
    coded = "" if options.codec == "none" else f", coded above {format_bytes(limits.full_precision_bytes)}"
    return f"{limits}{coded}"


def format_bytes(count: int) -> str:
    """16384 -> "16 KiB"; not rounded."""
    for unit, size in (("GiB", 2**30), ("MiB", 2**20), ("KiB", 2**10)):
        if count and count % size == 0:
            return f"{count // size} {unit}"
    return f"{count:,} B"
