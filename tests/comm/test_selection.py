"""What the options and the measured tables choose, and what is refused before anything starts. No ranks needed."""

import json
from importlib.util import module_from_spec, spec_from_file_location
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from splitrank.comm.selection import (
    NO_LIMIT,
    WORLD_SIZES,
    AllReduceOptions,
    Thresholds,
    describe,
    format_bytes,
    load_table,
    select,
    tables_folder,
)

ROOT = Path(__file__).parents[2]
TABLE = """
target = "cuda"
thresholds = [
    { world_size = 2, element_bytes = 2, one_shot_bytes = 4096, two_shot_bytes = 1048576 },
    { world_size = 2, element_bytes = 4, one_shot_bytes = 8192, tagged_bytes = 1024 },
    { world_size = 4, element_bytes = 4, one_shot_bytes = 0 },
]
"""


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "cuda.toml").write_text(TABLE)
    return tmp_path


def test_auto_is_what_was_measured(folder: Path) -> None:
    chosen = select(AllReduceOptions(), 2, "cuda", folder)
    assert chosen.quick
    assert chosen.thresholds == {2: Thresholds(4096, 2**20), 4: Thresholds(8192, NO_LIMIT, 1024)}
    assert chosen.reason == "cuda.toml"


@pytest.mark.parametrize("options", [AllReduceOptions("quick"), AllReduceOptions("auto", "int8")])
def test_quick_and_codecs_never_take_torch(folder: Path, options: AllReduceOptions) -> None:
    chosen = select(options, 2, "cuda", folder)
    assert chosen.thresholds == {2: Thresholds(4096), 4: Thresholds(8192, tagged_bytes=1024)}


def test_the_table_says_which_way_a_message_goes() -> None:
    limits = Thresholds(8192, tagged_bytes=1024)
    assert [limits.way(size, "none", 2) for size in (16, 1024, 1040, 8192, 8208)] == [
        (algorithm, "none") for algorithm in ("tagged", "tagged", "one-shot", "one-shot", "two-shot")
    ]
    assert Thresholds(8192).way(16, "none", 2) == ("one-shot", "none")
    assert str(limits) == "tagged to 1 KiB, one-shot to 8 KiB, two-shot above"


def test_the_table_says_which_way_a_message_with_a_codec_goes() -> None:
    limits = Thresholds(8192, uncoded_bytes=1024, coded_tagged_bytes=2048, coded_one_shot_bytes=4096)
    assert [limits.way(size, "int8", 2) for size in (1024, 2048, 4096, 4112)] == [
        *(("one-shot", "none"), ("tagged", "int8"), ("one-shot", "int8"), ("two-shot", "int8"))
    ]
    assert [limits.way(size, "int8", 4) for size in (1024, 2048, 4096)] == [
        *(("one-shot", "none"), ("two-shot", "int8"), ("two-shot", "int8"))
    ]
    assert [Thresholds(8192).way(size, "int4", 2) for size in (8192, 8208)] == [
        *(("one-shot", "none"), ("one-shot", "int4"))
    ]


@pytest.mark.parametrize(
    ("options", "world_size", "target", "reason"),
    [
        (AllReduceOptions("torch"), 2, "cuda", "as asked"),
        (AllReduceOptions(), 3, "cuda", "the quick all-reduce sums over 2, 4 or 8 ranks, not over 3"),
        (AllReduceOptions(), 4, "cuda", "no measured table for 4 ranks on cuda"),  # one dtype is missing
        (AllReduceOptions(), 2, "hip", "no measured table for 2 ranks on hip; --all-reduce quick is there"),
    ],
)
def test_when_all_goes_through_torch(
    folder: Path, options: AllReduceOptions, world_size: int, target: str, reason: str
) -> None:
    chosen = select(options, world_size, target, folder)
    assert not chosen.quick
    assert reason in chosen.reason
    assert describe(options, chosen, 1, 0) == f"stage 1: all-reduce torch ({chosen.reason})"


def test_quick_runs_without_a_table(folder: Path) -> None:
    chosen = select(AllReduceOptions("quick"), 2, "hip", folder)
    assert chosen.quick
    assert chosen.reason == "unmeasured"


def test_a_codec_without_a_table_needs_the_word_quick(folder: Path) -> None:
    with pytest.raises(ValueError, match=r"int8: no measured table .* give --all-reduce quick"):
        select(AllReduceOptions("auto", "int8"), 2, "hip", folder)
    assert select(AllReduceOptions("quick", "int8"), 2, "hip", folder).quick


@pytest.mark.parametrize(
    ("backend", "codec", "message"),
    [
        ("nccl", "none", "all_reduce must be one of auto, quick, torch, not 'nccl'"),
        ("auto", "fp8", "all_reduce_codec must be one of none, int8, int6, int4, not 'fp8'"),
        ("torch", "int8", "all_reduce_codec int8: torch has no codecs"),
    ],
)
def test_options_that_cannot_be(backend: str, codec: str, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        AllReduceOptions(backend, codec)


@pytest.mark.parametrize(
    ("backend", "codec", "tp", "message"),
    [
        ("quick", "none", 3, "all_reduce quick: .* sums over 2, 4 or 8 tensor ranks, not over 3; give auto or torch"),
        ("quick", "none", 16, "not over 16"),
        ("auto", "int4", 3, "all_reduce_codec int4: .* not over 3, and torch has no codecs"),
        ("auto", "int4", 1, "all_reduce_codec int4: with tp 1 nothing is reduced"),
        ("quick", "int4", 1, "with tp 1 nothing is reduced"),
    ],
)
def test_layouts_that_cannot_be(backend: str, codec: str, tp: int, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        AllReduceOptions(backend, codec).check_tensor_parallel(tp)


@pytest.mark.parametrize(("backend", "tp"), [("auto", 3), ("torch", 3), ("quick", 1), ("quick", 8)])
def test_layouts_that_can_be(backend: str, tp: int) -> None:
    AllReduceOptions(backend).check_tensor_parallel(tp)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (("one_shot_bytes = 4096", "one_shot_bytes = -1"), "a number of 0 or more"),
        (("one_shot_bytes = 4096", "one_shot = 4096"), "a row has element_bytes, one_shot_bytes, world_size"),
        (("4096, two_shot_bytes = 1048576", "4096, two_shot_bytes = 100"), "two_shot_bytes is below one_shot_bytes"),
        (("tagged_bytes = 1024", "tagged_bytes = 9216"), "tagged_bytes is above one_shot_bytes"),
        (('"cuda"', '"cpu"'), "target must be 'cuda', not 'cpu'"),
        (("]\n", "\n"), "not valid TOML"),
    ],
)
def test_a_broken_table_is_named(folder: Path, change: tuple[str, str], message: str) -> None:
    (folder / "cuda.toml").write_text(TABLE.replace(*change))
    with pytest.raises(ValueError, match=rf"cuda\.toml: .*{message}"):
        load_table("cuda", folder)


def test_the_shipped_tables_are_complete() -> None:
    names = {path.stem for path in tables_folder().glob("*.toml")}
    assert "cpu" in names
    assert names <= {"cpu", "cuda", "hip"}
    for name in names:
        table = load_table(name)
        assert table is not None
        assert {(size, width) for size in WORLD_SIZES for width in (2, 4)} <= set(table.thresholds) or name != "cpu"


def test_the_line_at_start(folder: Path) -> None:
    options = AllReduceOptions("auto", "none")
    line = describe(options, select(options, 2, "cuda", folder), 0, 3 * 2**20)
    assert line == (
        "stage 0: all-reduce quick, codec none; 16 bit: one-shot to 4 KiB, two-shot above to 1 MiB; "
        "32 bit: tagged to 1 KiB, one-shot to 8 KiB, two-shot above (cuda.toml); 3.0 MiB a rank"
    )


def test_the_line_at_start_says_what_is_coded(folder: Path) -> None:
    options = AllReduceOptions("auto", "int8")
    line = describe(options, select(options, 2, "cuda", folder), 1, 0)
    assert "codec int8; 16 bit: one-shot to 4 KiB, two-shot above, coded above 4 KiB; 32 bit: " in line


def test_bytes_are_not_rounded() -> None:
    assert [format_bytes(count) for count in (0, 16384, 3 * 2**20, 1500)] == ["0 B", "16 KiB", "3 MiB", "1,500 B"]


@pytest.fixture(scope="module")
def table_writer() -> ModuleType:
    spec = spec_from_file_location("table", ROOT / "scripts" / "all_reduce_table.py")
    assert spec is not None
    assert spec.loader is not None
    module = module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def line(num_bytes: int, one_shot: float, two_shot: float, gloo: float) -> dict[str, object]:
    times = {"one_shot_us": one_shot, "two_shot_us": two_shot, "gloo_us": gloo}
    return {"what": "all-reduce", "world_size": 2, "dtype": "bfloat16", "bytes": num_bytes, **times}


@pytest.mark.parametrize(
    ("lines", "expected"),
    [
        ([line(4096, 1, 2, 9), line(8192, 3, 2, 9)], Thresholds(4096)),
        ([line(8192, 3, 2, 9), line(16384, 1, 2, 9), line(4096, 1, 2, 9)], Thresholds(4096)),  # no gap is jumped
        ([line(4096, 1, 2, 9), line(8192, 9, 5, 6), line(16384, 9, 8, 7)], Thresholds(4096, 8192)),
        ([line(4096, 9, 8, 7)], Thresholds(0, 0)),  # torch from the first byte
        ([line(4096, 8, 9, 7)], Thresholds(0, 0)),
    ],
)
def test_a_measured_table_says_what_was_fastest(
    table_writer: ModuleType, folder: Path, lines: list[dict[str, object]], expected: Thresholds
) -> None:
    rows = table_writer.host_rows([*lines, {"what": "gather of logits"}])
    file = table_writer.write_table(rows, "cuda", "on cores", folder=folder)
    table = load_table("cuda", folder)
    assert file == folder / "cuda.toml"
    assert table is not None
    assert table.thresholds == {(2, 2): expected, (2, 4): Thresholds(8192, tagged_bytes=1024), (4, 4): Thresholds(0)}


@pytest.fixture(scope="module")
def two_cards() -> list[dict[str, Any]]:
    """What two H200s took, by size."""
    results = (ROOT / "csrc/results/all_reduce_two_h200.jsonl").read_text().splitlines()
    return [line for line in map(json.loads, results) if "us" in line]


def test_the_shipped_table_follows_from_what_two_gpus_took(
    table_writer: ModuleType, two_cards: list[dict[str, Any]]
) -> None:
    shipped = load_table("cuda")
    assert shipped is not None
    assert table_writer.gpu_rows(two_cards, 2) == shipped.thresholds


def test_four_gpus_are_added_to_the_table_of_two(
    table_writer: ModuleType, two_cards: list[dict[str, Any]], tmp_path: Path
) -> None:
    """Four ranks: fewer tagged words, and codecs with two-shot alone. Torch is the faster from 64 MiB on."""
    lines = [{"bytes": line["bytes"], "us": dict(line["us"])} for line in two_cards]
    for line in lines:
        for way in list(line["us"]):
            if way.startswith(("tagged+", "one-shot+")) or (way == "tagged" and line["bytes"] > 768 * 2**10):
                del line["us"][way]
        if line["bytes"] >= 64 * 2**20:
            line["us"]["nccl"] = 1.0
    table_writer.write_table(table_writer.gpu_rows(two_cards, 2), "cuda", "two", folder=tmp_path)
    file = table_writer.write_table(table_writer.gpu_rows(lines, 4), "cuda", "four", folder=tmp_path)
    table = load_table("cuda", tmp_path)
    assert table is not None
    four = Thresholds(4 * 2**20, 32 * 2**20, tagged_bytes=512 * 2**10, uncoded_bytes=2 * 2**20)
    assert {key: row for key, row in table.thresholds.items() if key[0] == 4} == {(4, 2): four, (4, 4): four}
    assert {key: row for key, row in table.thresholds.items() if key[0] == 2} == table_writer.gpu_rows(two_cards, 2)
    assert [text.split(", ")[-1] for text in file.read_text().splitlines()[:2]] == ["two", "four"]
