"""Where do two exact layouts first differ? By digests of what every layer hands on, token by token.

Positions come first, then layers: what a layer computes of a token depends on earlier tokens and on the layers before.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple

import msgspec

from splitrank.serving.protocol.messages import EMBEDDING, LOGITS, TraceHead, TraceLine


class Place(NamedTuple):
    """What half a layer computes of a token, in the order of the computation, request by request."""

    request: int
    position: int
    layer: int
    half: int = 0


@dataclass(frozen=True)
class LayoutTrace:
    """``digests`` by place, then by the rank's name."""

    layout: str
    digests: dict[Place, dict[str, str]] = field(default_factory=dict)


@dataclass(frozen=True)
class Divergence:
    """``ranks``: which ones of which layout have other bits."""

    place: Place
    ranks: str


def read_trace(layout: str, folder: Path) -> LayoutTrace:
    """What all ranks of a layout have written into ``folder``."""
    trace = LayoutTrace(layout)
    for file in sorted(folder.glob("rank-*.jsonl")):
        head, *lines = file.read_bytes().splitlines()
        rank = msgspec.json.decode(head, type=TraceHead).rank
        for line in (msgspec.json.decode(one, type=TraceLine) for one in lines):
            for request, position, digest in line.rows:
                trace.digests.setdefault(Place(request, position, line.layer, line.half), {})[rank] = digest
    return trace


def first_divergence(first: LayoutTrace, second: LayoutTrace) -> Divergence | None:
    """The first of the places that both have computed: what came from the prefix cache was not."""
    for place in sorted(first.digests.keys() & second.digests.keys()):
        ours, theirs = first.digests[place], second.digests[place]
        if len({*ours.values(), *theirs.values()}) > 1:
            return Divergence(place, _describe_ranks(first.layout, ours, second.layout, theirs))
    return None


def _describe_ranks(first: str, ours: dict[str, str], second: str, theirs: dict[str, str]) -> str:
    """Tensor ranks hold the same bits behind each sum, so a layout whose ranks differ from each other is at fault."""
    if len(set(ours.values())) > 1:
        return f"{_listed(ours)} of {first} differ from each other"
    expected = next(iter(ours.values()))
    differing = [rank for rank, digest in theirs.items() if digest != expected]
    return f"{_listed(differing)} of {second} {'differs' if len(differing) == 1 else 'differ'} from {first}"


def _listed(ranks: Iterable[str]) -> str:
    return " and ".join(sorted(ranks))


def describe(found: Divergence, questions: Sequence[int], prompt_lengths: list[int]) -> str:
    """One line. ``questions``: which one was asked as each request; ``prompt_lengths`` of all questions."""
    place, question = found.place, questions[found.place.request]
    answered = place.position - prompt_lengths[question]
    token = f"token {place.position} of the prompt" if answered < 0 else f"token {answered} of the answer"
    layer = f"layer {place.layer} ({'experts' if place.half else 'mixer'})"
    where = {EMBEDDING: "the embedding", LOGITS: "the logits"}.get(place.layer, layer)
    return f"question {question}, {token}, {where}: {found.ranks}"
