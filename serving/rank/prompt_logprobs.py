"""Log probabilities of prompts: of each token given those before it, chunk by chunk, for requests that ask for them.

The logits of a whole chunk would take gigabytes at a large vocabulary, so they are computed and dropped a few rows at a
time. Other requests' rows have no logits.
Legend: T rows of the step, R rows that are scored together, V vocabulary.
"""

from collections.abc import Iterable
from dataclasses import dataclass, replace
from itertools import groupby
from typing import Any, NamedTuple, Protocol

import torch

from splitrank.comm.collectives import Collectives
from splitrank.models.hidden_states import HiddenStates
from splitrank.models.ops import sampling
from splitrank.models.qwen3_5 import Stage
from splitrank.serving.protocol.messages import TokenLogprobs
from splitrank.serving.rank.request_table import RequestTable

MAX_LOGITS = 2**24  # at once: 64 MiB in float32


class Piece(NamedTuple):
    """Rows [row, row + length) of a batch are tokens [start, start + length) of the prompt in ``slot``."""

    slot: int
    row: int
    start: int
    length: int


@dataclass(frozen=True)
class ScoredRows:
    """The rows of one request's chunk, in the order of its prompt, and the tokens that follow each."""

    request: int
    num_top: int
    rows: list[int]
    targets: list[int]


class Planned(Protocol):
    @property
    def batch(self) -> Any: ...

    @property
    def scored(self) -> tuple[ScoredRows, ...]: ...


def scored_rows(table: RequestTable, pieces: Iterable[Piece]) -> tuple[ScoredRows, ...]:
    """The rows to be scored, of the requests that ask for it. The last token of a prompt has none: what follows it is
    sampled."""
    asked = [piece for piece in pieces if table.rows[piece.slot].prompt_logprobs is not None]
    by_slot = groupby(sorted(asked, key=lambda piece: (piece.slot, piece.start)), key=lambda piece: piece.slot)
    found = [_rows_of(table, slot, list(own)) for slot, own in by_slot]
    return tuple(one for one in found if one.rows)


def _rows_of(table: RequestTable, slot: int, pieces: list[Piece]) -> ScoredRows:
    row = table.rows[slot]
    start, end = pieces[0].start, pieces[-1].start + pieces[-1].length
    targets = row.prompt[start + 1 : end + 1].tolist()
    rows = [piece.row + offset for piece in pieces for offset in range(piece.length)]
    assert row.prompt_logprobs is not None
    return ScoredRows(row.request, row.prompt_logprobs, rows[: len(targets)], targets)


def score_prompts(
    model: Stage, states: HiddenStates, planned: Planned, collectives: Collectives
) -> dict[int, list[TokenLogprobs]]:
    """The log probabilities of each request's rows. ``states`` [T, H] are those behind the last layer. Tensor ranks
    call it together; the first of them gets the result, the others nothing."""
    rows = [row for one in planned.scored for row in one.rows]
    wanted = [(target, one.num_top) for one in planned.scored for target in one.targets]
    found: list[TokenLogprobs] = []
    step = max(1, MAX_LOGITS // model.config.vocab_size)
    for begin in range(0, len(rows), step):
        chosen = torch.tensor(rows[begin : begin + step], device=model.ops.device)
        logits = model.logits(states, replace(planned.batch, sample_rows=chosen), collectives)
        if collectives.rank == 0:
            found += _scored(logits.float(), wanted[begin : begin + step])
    scores = iter(found)
    return {one.request: [next(scores) for _ in one.rows] for one in planned.scored} if found else {}


def _scored(logits: torch.Tensor, wanted: list[tuple[int, int]]) -> list[TokenLogprobs]:
    """logits [R, V]; ``wanted``: the token that follows, and how many of the likeliest, R of them."""
    targets = torch.tensor([target for target, _ in wanted], device=logits.device)
    logprobs = logits - logits.logsumexp(-1, keepdim=True)
    chosen = logprobs.gather(1, targets[:, None])
    ranks = (logprobs > chosen).sum(-1) + 1
    most = max(num_top for _, num_top in wanted)
    none: list[list[Any]] = [[] for _ in wanted]
    top_logprobs, top_ids = sampling.top_k_rows(logprobs, most) if most else (none, none)
    return [
        TokenLogprobs(logprob, ids[:num_top], best[:num_top], rank)
        for logprob, ids, best, rank, (_, num_top) in zip(
            chosen[:, 0].tolist(), top_ids, top_logprobs, ranks.tolist(), wanted, strict=True
        )
    ]
