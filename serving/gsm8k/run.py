"""One layout's answers to all questions."""

import time
from collections.abc import AsyncGenerator
from contextlib import aclosing
from dataclasses import dataclass, field
from typing import Protocol

from splitrank.serving.gsm8k.config import Layout
from splitrank.serving.openai.formats import Collected
from splitrank.serving.options.progress import progress
from splitrank.serving.protocol.sampling_params import SamplingParams
from splitrank.serving.text.fan_out import fan_out
from splitrank.serving.text.text_engine import TextOutput


class AnswerSource(Protocol):
    """The part of ``TextEngine`` that a run uses."""

    def stream(self, prompt_token_ids: list[int], params: SamplingParams) -> AsyncGenerator[TextOutput, None]: ...


@dataclass
class Answer(Collected):
    """A request's whole output. ``error``: why the request failed; ``text`` is then what it had generated. ``digests``
    of the logits that each token came from; none if the engine was not asked for them."""

    error: str | None = None
    digests: list[bytes] = field(default_factory=list)

    def add(self, output: TextOutput) -> None:
        super().add(output)
        self.digests += output.digests


@dataclass(frozen=True)
class LayoutRun:
    """Answers in the order of the questions; seconds from the first request to the last answer."""

    layout: Layout
    answers: list[Answer]
    seconds: float


async def ask_all(
    engine: AnswerSource, layout: Layout, prompts: list[list[int]], params: SamplingParams, concurrency: int
) -> LayoutRun:
    """Asks all questions. After an error the question counts as lost, and the others go on."""
    answers = [Answer() for _ in prompts]
    began = time.monotonic()
    with progress(len(prompts), f"gsm8k {layout}", "questions") as bar:

        async def ask(index: int) -> None:
            await _ask(engine, prompts[index], params, answers[index])
            bar.update()

        await fan_out(range(len(prompts)), concurrency, ask)
    return LayoutRun(layout, answers, time.monotonic() - began)


async def _ask(engine: AnswerSource, prompt: list[int], params: SamplingParams, answer: Answer) -> None:
    try:
        async with aclosing(engine.stream(prompt, params)) as outputs:
            async for output in outputs:
                answer.add(output)
    except Exception as error:  # any error: the question counts as lost
        answer.error = str(error) or type(error).__name__
    else:
        if answer.finish_reason is None:
            answer.error = "the answer ended without a finish reason"


def lost_run(layout: Layout, num_questions: int, error: str) -> LayoutRun:
    """The run of a layout that did not start: every question is lost."""
    return LayoutRun(layout, [Answer(error=error) for _ in range(num_questions)], 0.0)
