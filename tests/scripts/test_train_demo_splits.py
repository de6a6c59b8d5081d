"""The generated sets: the same bytes for the same seed, train and test apart, and read by splitrank."""

import hashlib
import itertools
import json
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import generator
import pytest
import write_splits
from generator import belongs_to_test, problems, text_kinds
from write_splits import assert_disjoint, chosen, write_files

from splitrank.serving.gsm8k.config import Gsm8kConfig
from splitrank.serving.gsm8k.data import load_data

SMALL = {"train.jsonl": [("train", 60)], "test.jsonl": [("seen", 40), ("new_frames", 40)]}


@pytest.fixture
def small(monkeypatch) -> None:
    monkeypatch.setattr(write_splits, "FILES", SMALL)


def digests(folder: Path) -> dict[str, str]:
    return {path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in sorted(folder.iterdir())}


def test_the_same_seed_gives_the_same_bytes_in_any_process(small, tmp_path: Path) -> None:
    write_files(tmp_path / "here", "5")
    program = (
        "import sys; sys.path.insert(0, 'scripts/train_demo')\n"
        "import write_splits; from pathlib import Path\n"
        f"write_splits.FILES = {SMALL!r}\n"
        f"write_splits.write_files(Path({str(tmp_path / 'there')!r}), '5')\n"
    )
    subprocess.run(
        [sys.executable, "-c", program], cwd=Path(__file__).parents[2], env={"PYTHONHASHSEED": "7"}, check=True
    )
    write_files(tmp_path / "other", "6")
    assert digests(tmp_path / "here") == digests(tmp_path / "there")
    assert not set(digests(tmp_path / "here").values()) & set(digests(tmp_path / "other").values())


def test_the_demo_has_the_beginnings_of_these(small, tmp_path: Path) -> None:
    write_files(tmp_path)
    made, shipped = (
        {name: (folder / name).read_text().splitlines() for name in SMALL}
        for folder in (tmp_path, Path(__file__).parents[2] / "configs/demo")
    )
    assert shipped["train.jsonl"][:60] == made["train.jsonl"]
    assert shipped["test.jsonl"][:40] + shipped["test.jsonl"][500:540] == made["test.jsonl"]


def test_splitrank_reads_them(small, tmp_path: Path) -> None:
    splits = write_files(tmp_path)
    questions, shots = load_data(Gsm8kConfig(data=str(tmp_path / "test.jsonl")))
    assert [int(question.reference) for question in questions] == [
        problem.result for split in ("seen", "new_frames") for problem in splits[split]
    ]
    assert len(shots) == 5
    fields = [json.loads(line) for line in (tmp_path / "test.jsonl").read_text().splitlines()]
    assert [row["split"] for row in fields] == ["seen"] * 40 + ["new_frames"] * 40
    assert all(set(row) == {"question", "answer", "kind", "split"} for row in fields)


def test_train_and_test_share_no_numbers() -> None:
    train = list(itertools.islice(problems("train", "1"), 300))
    seen = list(itertools.islice(problems("seen", "1"), 100))
    assert not any(map(belongs_to_test, train))
    assert all(map(belongs_to_test, seen))
    assert all("/new" not in problem.frame for problem in train + seen)
    assert all("/new" in problem.frame for problem in itertools.islice(problems("new_frames", "1"), 50))


def test_more_wordings_for_training_change_no_test(monkeypatch) -> None:
    def tested() -> list[str]:
        return [problem.question for split in ("train", "seen", "new_frames") for problem in chosen(split, 40)]

    before = tested()
    kinds = tuple(replace(kind, also=[*kind.also, f"Also: {kind.frames[0]}"]) for kind in text_kinds())
    monkeypatch.setattr(generator, "text_kinds", lambda: kinds)
    assert tested() == before
    taught = itertools.islice(problems("train", "1", taught=True), 200)
    assert any(problem.question.startswith("Also: ") for problem in taught)


def test_a_shared_question_combination_or_frame_is_seen() -> None:
    splits = {split: chosen(split, 20) for split in ("train", "seen", "new_frames")}
    assert_disjoint(splits)
    with pytest.raises(AssertionError):
        assert_disjoint({**splits, "seen": [*splits["seen"], splits["train"][3]]})
    with pytest.raises(AssertionError):
        assert_disjoint({**splits, "seen": [*splits["seen"], splits["new_frames"][3]]})


def test_the_report_only_sets_are_what_they_say() -> None:
    assert all(len(problem.steps) >= 7 for problem in chosen("longer_chains", 20))
    larger, usual = chosen("larger_numbers", 60), chosen("seen", 60)
    assert sorted(p.result for p in larger)[30] > 2 * sorted(p.result for p in usual)[30]


def test_an_unknown_split_is_refused() -> None:
    with pytest.raises(ValueError, match="none of train, seen"):
        next(problems("tset", "1"))
