"""GSM8K's train split, in the form the generated solutions have; its test split is refused."""

import hashlib
import json
import re
from dataclasses import dataclass
from pathlib import Path

# sha256 of openai/grade-school-math's test.jsonl.
TEST_SHA256 = "3730d312f6e3440559ace48831e51066acaca737f6eabec99bccb9e4b3c39d14"
NUM_DEVELOPMENT = 200  # the last ones: never trained on, for the curve

_TIMES = {"x": "*", "\u00d7": "*"}
_MARKS = re.compile(r"<<[^<>]*>>")
_OPERATOR = re.compile(r"(?<=[\d)%])\s*([*/+=x\u00d7-])\s*(?=[\d$(.])")


@dataclass(frozen=True)
class Solved:
    """``marked`` is the answer as the file has it, with calculator marks: what a shot looks like."""

    question: str
    answer: str
    marked: str

    @property
    def thought(self) -> str:
        return self.answer.rpartition("\n#### ")[0]


def read_train(path: Path) -> tuple[list[Solved], list[Solved]]:
    """(training, development). ValueError for the test split, by name, by content or by a question of it."""
    content = path.read_bytes()
    if "test" in path.name.lower() or hashlib.sha256(content).hexdigest() == TEST_SHA256:
        raise ValueError(f"{path} is GSM8K's test split: nothing is trained on it")
    rows = [json.loads(line) for line in content.decode().splitlines() if line.strip()]
    sibling = path.with_name("test.jsonl")
    if sibling.exists():
        tested = {json.loads(line)["question"] for line in sibling.read_text(encoding="utf-8").splitlines()}
        if shared := [row["question"] for row in rows if row["question"] in tested]:
            raise ValueError(f"{path} holds {len(shared)} questions of {sibling}, e.g. {shared[0][:60]!r}")
    solved = [Solved(row["question"].strip(), clean(row["answer"]), row["answer"].strip()) for row in rows]
    return solved[:-NUM_DEVELOPMENT], solved[-NUM_DEVELOPMENT:]


def clean(answer: str) -> str:
    """Without calculator marks, operators between spaces, ``*`` for times: ``48 / 2 = 24``."""
    text = _MARKS.sub("", answer.strip())
    return _OPERATOR.sub(lambda found: f" {_TIMES.get(found[1], found[1])} ", text)
