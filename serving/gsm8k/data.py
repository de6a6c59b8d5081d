"""Loads questions and solutions: from a jsonl file, from the checkpoint, or when online from the hub."""

import codecs
import importlib
import json
import re
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from splitrank.serving.gsm8k.config import Gsm8kConfig
from splitrank.serving.gsm8k.extract import reference_answer
from splitrank.serving.launch.demo_checkpoint import demo_checkpoint_path

HUB_DATASET = "openai/gsm8k"
TRAIN = "train.jsonl"  # beside the test questions
_LONE_SURROGATE = re.compile("[\\ud800-\\udfff]")


@dataclass(frozen=True)
class Question:
    """``answer`` is the whole worked solution, ``reference`` the number it ends in."""

    question: str
    answer: str
    reference: str


def load_data(config: Gsm8kConfig) -> tuple[list[Question], list[Question]]:
    """(test questions, shots). ValueError, one line, for a missing or malformed file and for shots from the test."""
    test_path = _test_path(config)
    test = read_jsonl(test_path) if test_path else _read_hub("test")
    if not test:
        raise ValueError(f"{test_path or HUB_DATASET} holds no questions")
    shots = _load_shots(config, test_path)
    _refuse_leaks(shots, test)
    return test[: config.limit or None], shots


def local_files(config: Gsm8kConfig) -> list[Path]:
    """The files that questions and shots may come from."""
    test_path = _test_path(config)
    train = [Path(config.train)] if config.train else []
    return train if test_path is None else [test_path, test_path.parent / TRAIN, *train]


def _test_path(config: Gsm8kConfig) -> Path | None:
    return Path(config.data) if config.data else _beside_the_weights(config.model)


def _beside_the_weights(model: str) -> Path | None:
    """The test questions in a checkpoint's folder, if it has any; the demo has."""
    path = (Path(model) if model else demo_checkpoint_path()) / "test.jsonl"
    return path if path.is_file() else None


def read_jsonl(path: Path) -> list[Question]:
    """One object a line with the strings ``question`` and ``answer`` (which ends in ``#### number``)."""
    try:
        lines = path.read_bytes().removeprefix(codecs.BOM_UTF8).split(b"\n")
    except OSError as error:
        raise ValueError(f"{path}: {error.strerror}") from None
    rows = (
        (f"{path}:{number}", _parse_line(path, number, line)) for number, line in enumerate(lines, 1) if line.strip()
    )
    return _questions(rows)


def _parse_line(path: Path, number: int, line: bytes) -> Any:
    try:
        return json.loads(line)
    except (ValueError, RecursionError) as error:  # bad JSON and bad UTF-8, or nested too deeply
        raise ValueError(f"{path}:{number}: not a JSON line ({error})") from None


def _questions(rows: Iterable[tuple[str, Any]]) -> list[Question]:
    return [_question(place, row) for place, row in rows]


def _question(place: str, row: Any) -> Question:
    if not isinstance(row, dict):
        raise ValueError(f"{place}: not an object with question and answer")
    for name in ("question", "answer"):
        if not isinstance(row.get(name), str) or not row[name].strip():
            raise ValueError(f"{place}: field {name!r} is missing, empty or not a string")
        if _LONE_SURROGATE.search(row[name]):
            raise ValueError(f"{place}: field {name!r} holds half a surrogate pair, which no tokenizer can read")
    reference = reference_answer(row["answer"])
    if reference is None:
        raise ValueError(f"{place}: the answer does not end in '#### number'")
    return Question(row["question"], row["answer"], reference)


def _load_shots(config: Gsm8kConfig, test_path: Path | None) -> list[Question]:
    if config.shots == 0:
        return []
    if config.train or test_path:
        path = Path(config.train) if config.train else _default_train(test_path)
        if test_path and path.exists() and path.samefile(test_path):
            raise ValueError(
                f"{path} is the test file: shots from it would give answers away; name another with --train"
            )
        train, place = read_jsonl(path), str(path)
    else:
        train, place = _read_hub("train"), f"{HUB_DATASET} train"
    if len(train) < config.shots:
        raise ValueError(f"{place} holds {len(train)} examples, but --shots asks for {config.shots}")
    return train[: config.shots]


def _default_train(test_path: Path | None) -> Path:
    assert test_path is not None
    path = test_path.parent / TRAIN
    if not path.exists():
        raise ValueError(f"no {path} to take shots from: name a file with --train, or give --shots 0")
    return path


def _refuse_leaks(shots: list[Question], test: list[Question]) -> None:
    asked = {question.question for question in test}
    for shot in shots:
        if shot.question in asked:
            raise ValueError(f"a shot is also a test question ({shot.question[:60]!r}…): it would give its answer away")


def _read_hub(split: str) -> list[Question]:
    """Reads the splits from the hub, which stores them as parquet; pyarrow reads that."""
    try:
        parquet = importlib.import_module("pyarrow.parquet")
    except ImportError:
        raise ValueError(
            f"the hub holds {HUB_DATASET} as parquet: install pyarrow to read it, or give a local jsonl with --data"
        ) from None
    from huggingface_hub import hf_hub_download

    try:
        path = hf_hub_download(HUB_DATASET, f"main/{split}-00000-of-00001.parquet", repo_type="dataset")
    except Exception as error:  # when offline, the client raises errors of httpx, of the system and its own
        reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        raise ValueError(f"cannot fetch {HUB_DATASET} from the hub ({reason}); give a local file with --data") from None
    rows = parquet.read_table(path, columns=["question", "answer"]).to_pylist()
    return _questions((f"{HUB_DATASET} {split} row {number}", row) for number, row in enumerate(rows))
