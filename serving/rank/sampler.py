"""Samples the rows of a step together. A row that cannot be sampled fails alone.

The draw of a request depends on its seed and on the number of its tokens only, not on other rows of the batch, nor on
the layout. The order is that of ``transformers`` and vLLM: bias and bans, penalties (``sampling_state``), temperature,
top-k, top-p, min-p (``models.ops.sampling``).
"""

import hashlib
import logging
import math
from collections.abc import Callable
from dataclasses import dataclass

import torch

from splitrank.models.ops import sampling
from splitrank.models.ops.philox import uniform
from splitrank.models.ops.sampling import SamplingRows
from splitrank.serving.protocol.messages import RowFailure, TokenLogprobs
from splitrank.serving.rank.sampling_state import SamplingState

_log = logging.getLogger(__name__)
DIGEST_BYTES = 8


@dataclass(frozen=True)
class SampledRow:
    """A token, with logprobs if the request asked for them; or why the row has no token. ``digest`` of its logits, if
    the launch spec asks for it."""

    token: int
    logprobs: TokenLogprobs | None = None
    failure: RowFailure | None = None
    digest: bytes = b""


Greedy = Callable[[torch.Tensor], tuple[torch.Tensor, torch.Tensor]]


def sample(
    logits: torch.Tensor, states: list[SamplingState], digests: bool = False, greedy: Greedy = sampling.greedy
) -> list[SampledRow]:
    """logits [S, vocab] in float32, one state for each row. A state advances if its row gets a token.

    With ``digests``, a token has a digest of its row's bits. ``greedy``: a device's own ``sampling.greedy``.

    A row fails alone if its logits hold NaN or +inf, or are all -inf, or if sampling it raises an error. If sampling
    all rows together raises an error, the rows are sampled one by one to find the one at fault.
    """
    try:
        rows = _sample(logits, states, digests, greedy)
    except Exception as error:
        _log.warning("%d rows cannot be sampled together (%s); one by one now", len(states), _one_line(error))
        rows = [_sample_alone(logits[row : row + 1], state, digests) for row, state in enumerate(states)]
    return [_appended(row, state) for row, state in zip(rows, states, strict=True)]


def _appended(row: SampledRow, state: SamplingState) -> SampledRow:
    try:
        if row.failure is None:
            state.append(row.token)
    except Exception as error:
        return _failed(error)
    return row


def _sample_alone(logits: torch.Tensor, state: SamplingState, digests: bool) -> SampledRow:
    try:
        return _sample(logits, [state], digests)[0]
    except Exception as error:
        return _failed(error)


def _failed(error: Exception) -> SampledRow:
    _log.error("a row cannot be sampled", exc_info=error)
    return SampledRow(-1, failure=RowFailure("sampling_failed", f"sampling failed: {_one_line(error)}"))


def _one_line(error: Exception) -> str:
    return f"{type(error).__name__}: {' '.join(str(error).split())}"


def _sample(
    logits: torch.Tensor, states: list[SamplingState], digests: bool, greedy: Greedy = sampling.greedy
) -> list[SampledRow]:
    adjusted = _adjusted(logits, states)
    if all(state.is_greedy for state in states):
        tokens, best = greedy(adjusted)
    else:
        tokens, best = sampling.sample(adjusted, _sampling_rows(states, logits.shape[1]))
    return [
        SampledRow(token, _logprobs(row, token, state.params.logprobs), digest=row_digest(row) if digests else b"")
        if math.isfinite(largest)
        else SampledRow(-1, failure=bad_numbers(largest, state.num_output))
        for row, token, largest, state in zip(logits, tokens.tolist(), best.tolist(), states, strict=True)
    ]


def _adjusted(logits: torch.Tensor, states: list[SamplingState]) -> torch.Tensor:
    """The logits after bias, penalties and bans: a copy if there are any, since logprobs are of the model's own."""
    if any(state.changes_logits for state in states):
        logits = logits.clone()
        for row, state in zip(logits, states, strict=True):
            if state.changes_logits:
                state.adjust_(row)
    return logits


def _sampling_rows(states: list[SamplingState], vocab_size: int) -> SamplingRows:
    params = [state.params for state in states]
    seeds, positions = [state.seed for state in states], [state.num_output for state in states]
    draws = uniform(torch.tensor(seeds), torch.tensor(positions))
    return SamplingRows(
        torch.tensor([one.temperature for one in params], dtype=torch.float32),
        torch.tensor([min(one.top_k, vocab_size) for one in params]),  # some users write 2^63 for "all"
        torch.tensor([one.top_p for one in params], dtype=torch.float64),
        torch.tensor([one.min_p for one in params], dtype=torch.float32),
        draws,
    )


def bad_numbers(largest: float, output_token: int, infinity: str = "infinity") -> RowFailure:
    """Why a row whose largest logit is not finite has no token; ``output_token`` is counted from 0.

    ``infinity``: what a largest logit of +inf stands for.
    """
    what = "hold NaN" if math.isnan(largest) else f"hold {infinity}" if largest > 0 else "are all minus infinity"
    reason = f"the model's logits for output token {output_token} {what}"
    _log.warning("a request fails: %s", reason)
    return RowFailure("invalid_numbers", reason)


def _logprobs(logits: torch.Tensor, token: int, num_top: int | None) -> TokenLogprobs | None:
    """logits [vocab]."""
    if num_top is None:
        return None
    log_total = logits.logsumexp(dim=-1)
    values, ids = sampling.top_k(logits, num_top) if num_top else (logits[:0], logits[:0])
    return TokenLogprobs(float(logits[token] - log_total), ids.tolist(), (values - log_total).tolist())


def row_digest(row: torch.Tensor) -> bytes:
    """A digest of the bytes of one row, which is contiguous."""
    return hashlib.blake2b(row.view(torch.uint8).numpy().data, digest_size=DIGEST_BYTES).digest()
