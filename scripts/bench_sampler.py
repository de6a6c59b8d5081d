"""What sampling costs at the real vocabulary: the sampler against the slow version, in turns; JSON lines on stdout.

    python scripts/bench_sampler.py [--vocab 248320] [--rows 1 8 64] [--rounds 9]

Milliseconds of the thread's CPU time on one torch thread, the median of the rounds, for one token of all rows. The
slow version is ``reference.sample_row`` (a whole sort, row by row); for penalties and bias it is a loop over tokens.
"""

import argparse
import json
import statistics
import time
from collections import Counter
from collections.abc import Callable
from typing import Any

import torch

from splitrank.models.ops import reference
from splitrank.serving.protocol.sampling_params import SamplingParams
from splitrank.serving.rank.sampler import sample
from splitrank.serving.rank.sampling_state import SamplingState

KINDS: dict[str, dict[str, Any]] = {
    "greedy": {"temperature": 0.0},
    "defaults: 0.6, top-k 20, top-p 0.95": {"temperature": 0.6, "top_k": 20, "top_p": 0.95},
    "temperature 0.7": {"temperature": 0.7},
    "temperature 0.7, top-p 0.95": {"temperature": 0.7, "top_p": 0.95},
    "temperature 2, top-p 0.95": {"temperature": 2.0, "top_p": 0.95},
    "temperature 0.7, min-p 0.05": {"temperature": 0.7, "min_p": 0.05},
    "temperature 0.7, top-k 1000": {"temperature": 0.7, "top_k": 1000},
    "defaults, presence 1.5": {"temperature": 0.6, "top_k": 20, "top_p": 0.95, "presence_penalty": 1.5},
    "defaults, 5 logprobs": {"temperature": 0.6, "top_k": 20, "top_p": 0.95, "logprobs": 5},
}
NUM_PROMPT, NUM_OUTPUT = 1000, 200


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--vocab", type=int, default=248_320)
    parser.add_argument("--rows", type=int, nargs="+", default=[1, 8, 64])
    parser.add_argument("--rounds", type=int, default=9)
    args = parser.parse_args()
    torch.set_num_threads(1)
    with torch.inference_mode():
        for rows in args.rows:
            logits = 3 * torch.randn(rows, args.vocab, generator=torch.Generator().manual_seed(0))
            for name, params in KINDS.items():
                bench_draws(name, logits, params, args.rounds)
        for count in (300, 40_000):
            bias = dict.fromkeys(range(0, count * 5, 5), -1.0)
            bench_adjusting(f"{count} entries of logit_bias", args.vocab, [1], args.rounds, logit_bias=bias)
        for count in (20_000, 200_000):
            prompt = list(range(count))
            bench_adjusting(f"repetition over {count} tokens", args.vocab, prompt, args.rounds, repetition_penalty=1.1)


def bench_draws(name: str, logits: torch.Tensor, params: dict[str, Any], rounds: int) -> None:
    """A token of each row."""
    filters = {key: value for key, value in params.items() if key in ("temperature", "top_k", "top_p", "min_p")}
    states = [make_state(row, list(range(NUM_PROMPT)), params) for row in range(len(logits))]
    slow, fast = in_turns(
        lambda: [reference.sample_row(row, 0.5, **filters) for row in logits], lambda: sample(logits, states), rounds
    )
    emit(name, len(logits), slow, fast)


def bench_adjusting(name: str, vocab_size: int, prompt: list[int], rounds: int, **params: Any) -> None:
    """Bias and penalties of one row; a token more each time, as in a decode."""
    state, output = make_state(0, prompt, params), Counter(range(NUM_OUTPUT))
    logits = 3 * torch.randn(vocab_size, generator=torch.Generator().manual_seed(0))

    def fast() -> None:
        state.adjust_(logits.clone())
        state.append(vocab_size - 1)

    state.adjust_(logits.clone())  # the tensors are made at the first token
    slow, quick = in_turns(lambda: adjust_slowly(logits.clone(), state.params, prompt, output), fast, rounds)
    emit(name, 1, slow, quick)


def make_state(row: int, prompt: list[int], params: dict[str, Any]) -> SamplingState:
    state = SamplingState(prompt, SamplingParams(max_tokens=100_000, seed=row, **params), (248_044,))
    for token in range(NUM_OUTPUT):
        state.append(token)
    return state


def adjust_slowly(logits: torch.Tensor, params: SamplingParams, prompt: list[int], output: Counter[int]) -> None:
    """Token by token."""
    for token, bias in params.logit_bias.items():
        logits[token] += bias
    if params.repetition_penalty != 1.0:
        for token in sorted({*prompt, *output}):
            value = logits[token]
            logits[token] = value / params.repetition_penalty if value > 0 else value * params.repetition_penalty


def in_turns(slow: Callable[[], object], fast: Callable[[], object], rounds: int) -> tuple[float, float]:
    """Median milliseconds of both, after one warm-up of each. The slow one gets a third of the rounds."""
    times: tuple[list[float], list[float]] = ([], [])
    for number in range(rounds + 1):
        for run, spent in ((slow, times[0]), (fast, times[1])):
            if run is fast or number % 3 == 0:
                began = time.thread_time()
                run()
                spent.append((time.thread_time() - began) * 1e3)
    return statistics.median(times[0][1:]), statistics.median(times[1][1:])


def emit(what: str, rows: int, slow: float, fast: float) -> None:
    """One JSON line."""
    line = {
        "what": what,
        "rows": rows,
        "slow_ms": round(slow, 3),
        "sampler_ms": round(fast, 3),
        "sampler_ms_a_row": round(fast / rows, 3),
        "ratio": round(slow / fast, 1),
    }
    print(json.dumps(line), flush=True)


if __name__ == "__main__":
    main()
