"""Picks the next token of each sampled row: penalties, temperature, top-k, top-p, min-p, and a seed a request.

The draw of a request depends on its seed and on how many tokens it has, on nothing else: not on its neighbours in the
batch, nor on the layout. Order of the steps as in ``transformers``' and vLLM's: bias and bans, penalties, temperature,
top-k, top-p, min-p.
"""

import hashlib
from collections import Counter
from dataclasses import dataclass, field

import torch

from splitrank.serving.messages import TokenLogprobs
from splitrank.serving.sampling_params import SamplingParams


@dataclass
class SamplingState:
    """What the sampling rank remembers of a request: its parameters, prompt, and output so far."""

    params: SamplingParams
    prompt: frozenset[int]
    seed: int
    stop_ids: tuple[int, ...]
    num_output: int = 0
    counts: Counter[int] = field(default_factory=Counter)

    def append(self, token: int) -> None:
        self.num_output += 1
        self.counts[token] += 1


def sampling_state(
    request: int, prompt: list[int], params: SamplingParams, eos_token_ids: tuple[int, ...], engine_seed: int
) -> SamplingState:
    """A request without a seed draws one from the engine's seed and its number."""
    seed = params.seed if params.seed is not None else _mix(engine_seed, request)
    # min_tokens bans whatever would end the request too early.
    stop_ids = (*params.stop_token_ids, *(() if params.ignore_eos else eos_token_ids))
    return SamplingState(params, frozenset(prompt), seed, stop_ids)


def sample(logits: torch.Tensor, states: list[SamplingState]) -> tuple[list[int], list[TokenLogprobs | None]]:
    """logits [S, vocab] in float32, one state a row -> a token and (if asked for) logprobs a row; states advance."""
    if all(_is_plain_greedy(state) for state in states):
        tokens = logits.argmax(dim=-1).tolist()
    else:
        tokens = [_sample_row(row, state) for row, state in zip(logits, states, strict=True)]
    logprobs = [
        _logprobs(row, token, state.params.logprobs) for row, token, state in zip(logits, tokens, states, strict=True)
    ]
    for token, state in zip(tokens, states, strict=True):
        state.append(token)
    return tokens, logprobs


def _is_plain_greedy(state: SamplingState) -> bool:
    params = state.params
    return params.temperature == 0.0 and not _changes_logits(state)


def _changes_logits(state: SamplingState) -> bool:
    params = state.params
    return bool(
        params.logit_bias
        or params.presence_penalty
        or params.frequency_penalty
        or params.repetition_penalty != 1.0
        or (state.num_output < params.min_tokens and state.stop_ids)
    )


def _sample_row(logits: torch.Tensor, state: SamplingState) -> int:
    params = state.params
    if _changes_logits(state):
        logits = adjust_logits(logits.clone(), state)
    if params.temperature == 0.0:
        return int(logits.argmax())
    probabilities = filtered_probabilities(_divide_by_temperature(logits, params.temperature), params)
    generator = torch.Generator().manual_seed(_mix(state.seed, state.num_output))
    return int(torch.multinomial(probabilities, 1, generator=generator))


def _divide_by_temperature(logits: torch.Tensor, temperature: float) -> torch.Tensor:
    """The best logit becomes zero first: no temperature, however small, may turn two of them into infinities."""
    return (logits - logits.max()) / max(temperature, torch.finfo(logits.dtype).tiny)


def adjust_logits(logits: torch.Tensor, state: SamplingState) -> torch.Tensor:
    """Bias, the three penalties, the ban of stop tokens before ``min_tokens``; logits [vocab], changed in place."""
    params = state.params
    for token, bias in params.logit_bias.items():
        logits[token] += bias
    if params.repetition_penalty != 1.0:  # over prompt and output (Keskar et al., "CTRL", 2019)
        seen = torch.tensor(sorted(state.prompt | state.counts.keys()))
        values = logits[seen]
        logits[seen] = torch.where(values > 0, values / params.repetition_penalty, values * params.repetition_penalty)
    if state.counts and (params.presence_penalty or params.frequency_penalty):  # over the output (OpenAI's)
        tokens, counts = zip(*state.counts.items(), strict=True)
        penalty = params.presence_penalty + params.frequency_penalty * torch.tensor(counts, dtype=logits.dtype)
        logits[list(tokens)] -= penalty
    if state.num_output < params.min_tokens and state.stop_ids:
        logits[list(state.stop_ids)] = -torch.inf
    # Finite, also when every token is banned or a tiny repetition penalty overflows: softmax cannot take infinities.
    limits = torch.finfo(logits.dtype)
    return logits.clamp_(limits.min, limits.max)


def filtered_probabilities(logits: torch.Tensor, params: SamplingParams) -> torch.Tensor:
    """Softmax of [vocab] logits with what top-k, top-p and min-p exclude at zero (not renormalised)."""
    if 0 < params.top_k < logits.shape[-1]:
        threshold = torch.topk(logits, params.top_k).values[-1]
        logits = logits.masked_fill(logits < threshold, -torch.inf)
    probabilities = torch.softmax(logits, dim=-1)
    if params.top_p < 1.0:
        ordered, order = probabilities.sort(descending=True, stable=True)
        # A token stays if the mass before it has not reached top_p: the first always stays.
        dropped = ordered.cumsum(-1) - ordered >= params.top_p
        dropped[0] = False  # a top_p below the smallest float32 is zero here
        probabilities = probabilities.index_fill(0, order[dropped], 0.0)
    if params.min_p > 0.0:
        probabilities = probabilities * (probabilities >= params.min_p * probabilities.max())
    return probabilities


def _logprobs(logits: torch.Tensor, token: int, num_top: int | None) -> TokenLogprobs | None:
    if num_top is None:
        return None
    logprobs = torch.log_softmax(logits, dim=-1)
    values, ids = torch.topk(logprobs, min(num_top, len(logprobs)))
    return TokenLogprobs(float(logprobs[token]), ids.tolist(), values.tolist())


def _mix(seed: int, number: int) -> int:
    """A 63-bit seed from two numbers: neighbouring seeds and positions must not give related streams."""
    digest = hashlib.blake2b(f"{seed},{number}".encode(), digest_size=8).digest()
    return int.from_bytes(digest, "little") >> 1
