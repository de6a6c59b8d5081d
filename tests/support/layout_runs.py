"""The same plans on every layout, as real processes: what each made of them, logits and tokens.

Five layers, so that no pp from 2 to 4 divides them and some stages have no full attention; a vocabulary that no tp
divides; two kv heads and two key heads, which four tensor ranks share.
"""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import msgspec
import torch
from safetensors.torch import load_file

from splitrank.models.sharding import equal_partition
from splitrank.serving.protocol.messages import ChunkPlan, NewPages, StepPlan
from splitrank.serving.protocol.sampling_params import SamplingParams
from tests.support.checkpoints import make_reference, random_text_config, write_checkpoint
from tests.support.forked import ForkedProcess, finish_all
from tests.support.stage_rank import Run
from tests.support.stage_runner import CHUNK, admitted, launch_spec, random_tokens

NUM_LAYERS, VOCAB_SIZE = 5, 389
WIDE = 256  # requests of ``wide_plans``: the most decode rows that a step of a GPU has
DTYPES = ("float32", "bfloat16")
GREEDY = SamplingParams(temperature=0.0, max_tokens=100)

Outcome = dict[str, torch.Tensor]


def plans(params: SamplingParams = GREEDY) -> list[StepPlan]:
    """A prompt of three chunks, one of a single token, one in the middle; given and sampled tokens, decode and prefill
    in one step. Given tokens stand in the prompt and are computed one by one."""
    given = [30, 60, 388 - 2, 0, 99]
    long, one, late = (random_tokens(length, VOCAB_SIZE, seed=length) for length in (150, 1, 40))
    long, one, late = long + [t + 1 for t in given], [*one, 17, 23, *given], late + [t + 2 for t in given]
    new_long, new_one, new_late = (admitted(*row, params) for row in ((0, 3, long), (1, 0, one), (2, 6, late)))
    pages = {3: [7, *range(20, 32)], 0: [5, 9], 6: [11, 2, 40, 3]}

    def tokens(slot: int, count: int = 1) -> ChunkPlan:
        return ChunkPlan(slot, count, sample=True)

    steps: list[dict[str, list]] = [
        {
            "admitted": [new_long, new_one],
            "pages": [NewPages(slot, pages[slot]) for slot in (3, 0)],
            "chunks": [tokens(3, CHUNK), tokens(0)],
        },
        {"chunks": [tokens(3, CHUNK), tokens(0)]},
        {
            "admitted": [new_late],
            "pages": [NewPages(6, pages[6])],
            "chunks": [tokens(6, 40), tokens(0), tokens(3, 150 - 2 * CHUNK)],
        },
        *({"chunks": [tokens(0), tokens(3), tokens(6)]} for _ in given),
        *({"decodes": slots} for slots in ([6], [0, 3, 6], [3, 0], [6, 3])),
        {"decodes": [0], "released": [0]},  # whose last token nobody has taken
        {
            "decodes": [6],
            "admitted": [admitted(3, 3, one, params)],
            "pages": [NewPages(3, [21, 20])],
            "chunks": [tokens(3, 8)],
        },
        {"decodes": [3, 6, 0]},
    ]
    return [StepPlan(step, "", **parts) for step, parts in enumerate(steps)]


def wide_plans(params: SamplingParams) -> list[StepPlan]:
    """``WIDE`` short prompts, then decode steps of all, of 8 and of 1, and a prompt beside the largest batch."""
    prompts = [random_tokens(2 + slot % 3, VOCAB_SIZE, seed=slot) for slot in range(WIDE)]

    def prefill(slots: range) -> dict[str, list]:
        return {
            "admitted": [admitted(slot, slot, prompts[slot], params) for slot in slots],
            "pages": [NewPages(slot, [slot + 1]) for slot in slots],
            "chunks": [ChunkPlan(slot, len(prompts[slot]), sample=True) for slot in slots],
        }

    at_once = CHUNK // 4
    every = list(range(WIDE))
    steps = [
        *(prefill(range(first, first + at_once)) for first in range(0, WIDE, at_once)),
        *({"decodes": slots} for slots in (every, every, every[::-1], every[7:15], every[40:48], [5], [200])),
        {"decodes": every[1:], "released": [0]},
        {"decodes": every[1:], **prefill(range(1))},
        {"decodes": every},
    ]
    return [StepPlan(step, "", **parts) for step, parts in enumerate(steps)]


def num_sampled(plan: StepPlan) -> int:
    return len(plan.decodes) + len(plan.chunks)


class Layouts:
    """Runs each layout once, in both dtypes, and remembers what came out."""

    def __init__(
        self,
        folder: Path,
        params: SamplingParams = GREEDY,
        in_flight: int = 1,
        steps: Callable[[SamplingParams], list[StepPlan]] = plans,
        **options: Any,
    ) -> None:
        self._folder, self._outcomes = folder, dict[tuple[int, int], dict[str, Outcome]]()
        self._plans, self._options, self._in_flight = steps(params), options, in_flight
        config = random_text_config(num_hidden_layers=NUM_LAYERS, vocab_size=VOCAB_SIZE)
        write_checkpoint(make_reference(config, seed=21), folder / "model", shards=2)

    def outcome(self, pp: int, tp: int) -> dict[str, Outcome]:
        if (pp, tp) not in self._outcomes:
            self._outcomes[pp, tp] = self._run(pp, tp)
        return self._outcomes[pp, tp]

    def _run(self, pp: int, tp: int) -> dict[str, Outcome]:
        runs = {dtype: self._prepare(pp, tp, dtype) for dtype in DTYPES}
        job = self._folder / f"pp{pp}-tp{tp}.job"
        job.write_bytes(msgspec.msgpack.encode(list(runs.values())))
        finish_all([ForkedProcess("tests.support.stage_rank", job, rank) for rank in range(pp * tp)])
        return {dtype: load_file(run.output) for dtype, run in runs.items()}

    def _prepare(self, pp: int, tp: int, dtype: str) -> Run:
        run_dir = self._folder / f"pp{pp}-tp{tp}-{dtype}"
        run_dir.mkdir()
        layout: dict[str, Any] = {"pp_size": pp, "tp_size": tp, "partition": equal_partition(NUM_LAYERS, pp)}
        spec = launch_spec(self._folder / "model", run_dir, dtype=dtype, **layout, **self._options)
        return Run(spec, self._plans, str(run_dir / "outcome.safetensors"), self._in_flight)
