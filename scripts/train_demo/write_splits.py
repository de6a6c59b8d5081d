"""Writes the generated sets as jsonl lines {"question", "answer", "kind", "split"} for ``splitrank gsm8k --data``.

    python scripts/train_demo/write_splits.py --out build/train_demo/data

``test.jsonl``: 500 seen frames with unseen numbers, 500 held-out frames. ``train.jsonl``: a sample of the endless
training set, from which shots are taken. ``larger_numbers.jsonl`` and ``longer_chains.jsonl``: reported, without a bar.
"""

import argparse
import json
from collections.abc import Iterator
from pathlib import Path

from generator import num_kinds, problems
from problem import Problem

DATA_SEED = "20261122"
FILES: dict[str, list[tuple[str, int]]] = {
    "train.jsonl": [("train", 1_000)],
    "test.jsonl": [("seen", 500), ("new_frames", 500)],
    "larger_numbers.jsonl": [("larger_numbers", 300)],
    "longer_chains.jsonl": [("longer_chains", 300)],
}


def chosen(split: str, count: int, seed: str = DATA_SEED) -> list[Problem]:
    """The first ``count`` of a split, no question and no combination twice."""
    return list(_distinct(split, count, seed))


def _distinct(split: str, count: int, seed: str) -> Iterator[Problem]:
    met: set[str] = set()
    for problem in problems(split, seed):
        if len(met) >= 2 * count:
            return
        if problem.question not in met and problem.combination not in met:
            met |= {problem.question, problem.combination}
            yield problem


def assert_disjoint(splits: dict[str, list[Problem]]) -> None:
    """No test has a question or a combination of numbers of the training set, nor new frames one of its frames."""
    train = splits["train"]
    asked = {problem.question for problem in train}
    combined = {problem.combination for problem in train}
    framed = {problem.frame for problem in train + splits["seen"]}
    for split, tested in splits.items():
        if split != "train":
            assert not asked & {problem.question for problem in tested}, split
            assert not combined & {problem.combination for problem in tested}, split
    assert not framed & {problem.frame for problem in splits["new_frames"]}


def write_files(folder: Path, seed: str = DATA_SEED) -> dict[str, list[Problem]]:
    folder.mkdir(parents=True, exist_ok=True)
    splits = {split: chosen(split, count, seed) for parts in FILES.values() for split, count in parts}
    assert_disjoint(splits)
    for name, parts in FILES.items():
        lines = [_line(problem, split) for split, _ in parts for problem in splits[split]]
        (folder / name).write_text("".join(lines), encoding="utf-8")
    return splits


def _line(problem: Problem, split: str) -> str:
    fields = {"question": problem.question, "answer": problem.answer, "kind": problem.kind, "split": split}
    return json.dumps(fields, ensure_ascii=False) + "\n"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--seed", default=DATA_SEED)
    arguments = parser.parse_args()
    splits = write_files(arguments.out, arguments.seed)
    for split, chosen_ones in splits.items():
        kinds = len({problem.kind for problem in chosen_ones})
        print(f"{split}: {len(chosen_ones)} problems of {kinds} of {num_kinds()} kinds")


if __name__ == "__main__":
    main()
