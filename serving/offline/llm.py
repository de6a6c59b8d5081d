"""``LLM``: the engine as a Python object, for scripts and notebooks."""

import asyncio
import difflib
import itertools
import os
import threading
import weakref
from collections.abc import AsyncGenerator, Coroutine
from contextlib import aclosing
from dataclasses import dataclass, fields
from types import TracebackType
from typing import Any, Protocol, Self, TypeVar

from splitrank.serving.offline import llm_requests
from splitrank.serving.offline.llm_requests import Conversations, Params, Prompts
from splitrank.serving.openai.formats import Collected
from splitrank.serving.options.config import MOST_REQUESTS_AT_ONCE, EngineConfig
from splitrank.serving.options.options import refuse_empty
from splitrank.serving.options.progress import progress
from splitrank.serving.protocol.messages import TokenLogprobs
from splitrank.serving.protocol.sampling_params import SamplingParams
from splitrank.serving.protocol.seeds import with_seed
from splitrank.serving.text.fan_out import fan_out
from splitrank.serving.text.model_info import ModelInfo
from splitrank.serving.text.text_engine import TextOutput, start_text_engine
from splitrank.serving.text.tokenizer import Tokenizer

Result = TypeVar("Result")

# The engine client closes within 12 s by itself; these limits are for a bug in that.
CLOSE_TIMEOUT_S = 60.0
JOIN_TIMEOUT_S = 10.0


class RequestError(RuntimeError):
    """One request of a call failed; the message says which one and why. The others were cancelled."""


@dataclass(frozen=True)
class LLMOutput:
    """One answer. ``finish_reason`` is "stop" or "length". ``logprobs`` and ``prompt_logprobs`` have one entry a
    token, if asked for; that of the prompt's first token is None."""

    text: str
    token_ids: list[int]
    prompt_token_ids: list[int]
    finish_reason: str
    stop_reason: str | int | None
    logprobs: list[TokenLogprobs] | None
    prompt_logprobs: list[TokenLogprobs | None] | None = None


class Engine(Protocol):
    """The part of ``TextEngine`` that ``LLM`` uses."""

    tokenizer: Tokenizer
    info: ModelInfo

    def stream(self, prompt_token_ids: list[int], params: SamplingParams) -> AsyncGenerator[TextOutput, None]: ...

    async def close(self) -> None: ...


class LLM:
    """A running model: ``with LLM(model="folder", pp=2) as llm: print(llm.generate("Hello")[0].text)``.

    Keywords are the fields of ``EngineConfig``; without ``model`` the demo checkpoint runs. Raises ``TypeError`` for an
    unknown keyword, ``ValueError`` for a wrong value, ``EngineStartError`` when a rank does not start. It works inside
    a running event loop (notebooks) and from several threads, since it runs a loop of its own in a thread of its own. A
    script needs no ``if __name__ == "__main__"``. ``close`` ends all processes, and so does the end of the interpreter.

    Without a seed in its ``SamplingParams``, an answer's seed follows from the option ``seed``, the number of the call
    and the number of the prompt. So a program that is run again gives the same answers, and its calls give different
    ones.
    """

    def __init__(
        self, model: str | os.PathLike[str] | None = None, *, tp: int = 1, pp: int = 1, **options: Any
    ) -> None:
        config = _make_config(model, {"tp": tp, "pp": pp, **options})
        self._seed, self._calls = config.seed, itertools.count()
        self._runner = _LoopThread()
        try:
            self._engine: Engine = self._runner.run(start_text_engine(config))
        except BaseException:
            self._runner.stop()
            raise
        # As many open requests as the engine accepts, at most twice what a step can compute.
        running = config.max_running_requests or MOST_REQUESTS_AT_ONCE
        self._limit = min(2 * running, self._engine.info.max_open_requests)
        self._finalizer = weakref.finalize(self, _shut_down, self._runner, self._engine)

    @property
    def tokenizer(self) -> Tokenizer:
        return self._engine.tokenizer

    @property
    def info(self) -> ModelInfo:
        return self._engine.info

    def generate(self, prompts: Prompts, params: Params = None, *, show_progress: bool = True) -> list[LLMOutput]:
        """Continues each prompt; returns the answers in the order of the prompts.

        A prompt is text, a list or array of token ids, ``{"prompt": text}`` or ``{"prompt_token_ids": ids}``. One text
        or one dictionary may stand alone.

        ``params`` is one for all or a list; None means the model's defaults and 16 tokens. Raises ``ValueError``
        before anything runs if a prompt cannot be answered, ``RequestError`` for the first one that failed.
        """
        encoded = llm_requests.encode_prompts(prompts, self.tokenizer, self.info)
        return self._answer(encoded, llm_requests.completion_params(encoded, params, self.info), show_progress)

    def chat(
        self,
        messages: Conversations,
        params: Params = None,
        *,
        chat_template_kwargs: dict[str, Any] | None = None,
        show_progress: bool = True,
    ) -> list[LLMOutput]:
        """Answers one conversation (``[{"role": "user", "content": "…"}]``) or a list of them, as ``generate`` does.

        Without ``params`` an answer may use all that the context leaves. ``chat_template_kwargs`` reach the template,
        e.g. ``{"enable_thinking": False}``.
        """
        encoded = llm_requests.encode_conversations(messages, self.tokenizer, self.info, chat_template_kwargs)
        return self._answer(encoded, llm_requests.chat_params(encoded, params, self.info), show_progress)

    def close(self) -> None:
        """Ends all processes of the engine. May be called again."""
        self._finalizer()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _answer(self, encoded: list[list[int]], params: list[SamplingParams], show_progress: bool) -> list[LLMOutput]:
        if not self._finalizer.alive:
            raise RuntimeError("this LLM is closed")
        call = next(self._calls)
        params = [with_seed(one, self._seed, call, index) for index, one in enumerate(params)]
        return self._runner.run(_answer_all(self._engine, encoded, params, self._limit, show_progress))


def _make_config(model: str | os.PathLike[str] | None, options: dict[str, Any]) -> EngineConfig:
    if model is not None:
        refuse_empty("model", model)
        options["model"] = model
    known = [field.name for field in fields(EngineConfig)]
    for name in options:
        if name not in known:
            nearest = difflib.get_close_matches(name, known, n=1)
            hint = f"did you mean {nearest[0]}?" if nearest else f"known are {', '.join(known)}"
            raise TypeError(f"LLM() got an unknown keyword {name!r}; {hint}")
    return EngineConfig(**options)


async def _answer_all(
    engine: Engine, encoded: list[list[int]], params: list[SamplingParams], limit: int, show_progress: bool
) -> list[LLMOutput]:
    answers: dict[int, LLMOutput] = {}
    with progress(len(encoded), "generate", "requests", show=show_progress) as bar:

        async def answer(index: int) -> None:
            try:
                answers[index] = await _answer_one(engine, encoded[index], params[index])
            except Exception as error:
                raise RequestError(f"prompt {index} of {len(encoded)}: {error}") from error
            bar.update()

        await fan_out(range(len(encoded)), limit, answer)
    return [answers[index] for index in range(len(encoded))]


async def _answer_one(engine: Engine, prompt: list[int], params: SamplingParams) -> LLMOutput:
    answer = Collected()
    async with aclosing(engine.stream(prompt, params)) as outputs:
        async for output in outputs:
            answer.add(output)
    assert answer.finish_reason is not None, "the stream ended without a finish reason"
    of_prompt = None if params.prompt_logprobs is None else [None, *(answer.prompt_logprobs or [])]
    return LLMOutput(
        answer.text, answer.token_ids, prompt, answer.finish_reason, answer.stop_reason, answer.logprobs, of_prompt
    )


class _LoopThread:
    """A thread with an event loop, so that the caller's thread may run a loop of its own."""

    def __init__(self) -> None:
        self._loop = asyncio.new_event_loop()
        # A daemon: the interpreter joins all other threads before it runs the exit hook that ends this one.
        self.thread = threading.Thread(target=self._loop.run_forever, name="splitrank-llm", daemon=True)
        self.thread.start()

    def run(self, work: Coroutine[Any, Any, Result], timeout_s: float | None = None) -> Result:
        """Runs ``work`` in the loop and waits. Ctrl-C here cancels it there. The engine bounds the time of requests."""
        future = asyncio.run_coroutine_threadsafe(work, self._loop)
        try:
            return future.result(timeout_s)
        except BaseException:
            future.cancel()
            raise

    def stop(self) -> None:
        """Waits until cancelled tasks have cleaned up, then ends the loop and the thread."""
        self.run(_finish_tasks(), 2 * CLOSE_TIMEOUT_S)
        self._loop.call_soon_threadsafe(self._loop.stop)
        self.thread.join(JOIN_TIMEOUT_S)
        self._loop.close()


async def _finish_tasks() -> None:
    """Waits for tasks that end by themselves. To cancel them again would stop the clean-up of a cancelled start."""
    others = asyncio.all_tasks() - {asyncio.current_task()}
    if others:
        await asyncio.wait(others, timeout=CLOSE_TIMEOUT_S)


def _shut_down(runner: _LoopThread, engine: Engine) -> None:
    if threading.current_thread() is runner.thread:
        # The garbage collector called this in the loop's own thread, which cannot wait for itself.
        threading.Thread(target=_shut_down, args=(runner, engine), name="splitrank-llm-close").start()
        return
    try:
        runner.run(engine.close(), CLOSE_TIMEOUT_S)
    finally:
        runner.stop()
