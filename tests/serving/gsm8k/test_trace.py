"""Which place and which ranks of two traces are named; which rows of two layouts' logits are counted as equal."""

from pathlib import Path

import msgspec
import pytest

from splitrank.serving.gsm8k.logits import Difference, LogitComparison, compare_logits
from splitrank.serving.gsm8k.run import Answer
from splitrank.serving.gsm8k.trace import LayoutTrace, describe, first_divergence, read_trace
from splitrank.serving.protocol.messages import EMBEDDING, LOGITS, TraceHead, TraceLine

ONE, TWO = "rank 0 (stage 0, tp 0)", "rank 1 (stage 0, tp 1)"
Rows = dict[str, dict[int, list[str]]]  # by rank, then by layer: digests of positions 0, 1, ... of request 0


def trace(folder: Path, layout: str, ranks: Rows) -> LayoutTrace:
    """As the ranks of a layout write it."""
    (folder / layout).mkdir()
    for number, (rank, layers) in enumerate(ranks.items()):
        lines: list[msgspec.Struct] = [TraceHead(rank)]
        for layer, digests in layers.items():
            lines.append(TraceLine(layer, 0, [(0, position, digest) for position, digest in enumerate(digests)]))
        text = b"".join(msgspec.json.encode(line) + b"\n" for line in lines)
        (folder / layout / f"rank-{number}.jsonl").write_bytes(text)
    return read_trace(layout, folder / layout)


SOUND = {EMBEDDING: ["e", "e"], 0: ["a", "b"], 1: ["c", "d"], LOGITS: ["k", "l"]}


def changed(*changes: tuple[int, int]) -> dict[int, list[str]]:
    """``SOUND`` with other bits at these layers and positions."""
    return {
        layer: ["x" if (layer, position) in changes else digest for position, digest in enumerate(digests)]
        for layer, digests in SOUND.items()
    }


def find(folder: Path, first: Rows, second: Rows) -> str | None:
    found = first_divergence(trace(folder, "pp=1", first), trace(folder, "tp=2", second))
    return None if found is None else describe(found, [7], [9] * 7 + [1])


@pytest.mark.parametrize(
    ("changes", "named"),
    [
        (
            [(1, 0), (LOGITS, 0), (0, 1)],
            "token 0 of the prompt, layer 1 (mixer)",
        ),  # positions first
        ([(0, 1), (1, 1)], "token 0 of the answer, layer 0 (mixer)"),
        ([(EMBEDDING, 0), (0, 0)], "token 0 of the prompt, the embedding"),
        ([(LOGITS, 1)], "token 0 of the answer, the logits"),
    ],
)
def test_the_first_place_in_the_order_of_the_computation(
    tmp_path: Path, changes: list[tuple[int, int]], named: str
) -> None:
    found = find(tmp_path, {ONE: SOUND}, {ONE: changed(*changes), TWO: SOUND})
    assert found == f"question 7, {named}: {ONE} of tp=2 differs from pp=1"


def test_which_ranks(tmp_path: Path) -> None:
    other = changed((0, 0))
    cases: list[tuple[Rows, Rows, str]] = [
        ({ONE: SOUND}, {ONE: SOUND, TWO: other}, f"{TWO} of tp=2 differs from pp=1"),
        ({ONE: SOUND}, {ONE: other, TWO: other}, f"{ONE} and {TWO} of tp=2 differ from pp=1"),
        ({ONE: SOUND, TWO: other}, {ONE: SOUND}, f"{ONE} and {TWO} of pp=1 differ from each other"),
    ]
    for number, (first, second, named) in enumerate(cases):
        folder = tmp_path / str(number)
        folder.mkdir()
        assert find(folder, first, second) == f"question 7, token 0 of the prompt, layer 0 (mixer): {named}"


def test_equal_traces_and_what_only_one_layout_computed(tmp_path: Path) -> None:
    shorter = {layer: digests[:1] for layer, digests in changed((0, 1)).items()}
    assert find(tmp_path, {ONE: SOUND}, {ONE: shorter}) is None


def answer(*digests: str) -> Answer:
    return Answer(digests=[digest.encode() for digest in digests])


def test_rows_of_logits_are_counted() -> None:
    ours = [answer("a", "b"), answer("c", "d", "e"), answer("f")]
    assert compare_logits(ours, ours, range(3)) == LogitComparison(6, 6, None)
    theirs = [answer("a", "b"), answer("c", "x", "e"), answer("y")]
    assert compare_logits(ours, theirs, range(3)) == LogitComparison(6, 4, Difference(1, 1))
    assert compare_logits(ours, theirs, [0, 2]) == LogitComparison(3, 2, Difference(2, 0))
    longer = [answer("a", "b", "c"), *ours[1:]]
    assert compare_logits(ours, longer, range(3)) == LogitComparison(7, 6, Difference(0, 2))
    assert compare_logits([Answer()], [Answer()], [0]) == LogitComparison(0, 0, None)
