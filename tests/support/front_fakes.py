"""An engine client that answers from a script, in this process; and the whole server on top of it."""

import asyncio
import os
import random
import signal
import socket
import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx

from splitrank.serving.http.server import serve
from splitrank.serving.launch.engine_client import EngineDeadError
from splitrank.serving.options.config import EngineConfig, ServeConfig
from splitrank.serving.protocol.messages import EngineStats, RequestOutput, TokenLogprobs
from splitrank.serving.protocol.sampling_params import SamplingParams
from splitrank.serving.text.model_info import ModelInfo
from splitrank.serving.text.text_engine import TextEngine
from splitrank.serving.text.tokenizer import Tokenizer
from tests.support.limits import ANSWER_S, scaled
from tests.support.tiny_tokenizer import write_tokenizer

VOCAB_SIZE = 512
LIMIT_S = scaled(ANSWER_S)

Script = Callable[[list[int], SamplingParams], list[RequestOutput]]


def make_tokenizer(folder: Path) -> Tokenizer:
    return Tokenizer.from_folder(write_tokenizer(folder, VOCAB_SIZE))


def make_info(tokenizer: Tokenizer, max_model_len: int = 100, **defaults: float) -> ModelInfo:
    eos = tokenizer.encode("<|im_end|>")
    return ModelInfo("tiny", max_model_len, VOCAB_SIZE, tuple(eos), defaults, "splitrank-test", max_open_requests=1000)


def answer(tokenizer: Tokenizer, text: str) -> Script:
    """The text token by token, and the end of sequence if max_tokens allows."""
    token_ids, eos = tokenizer.encode(text), tokenizer.encode("<|im_end|>")[0]

    def script(prompt: list[int], params: SamplingParams) -> list[RequestOutput]:
        of_prompt = _prompt_outputs(prompt, params)
        outputs = [_output(token_id, params) for token_id in token_ids]
        if len(outputs) < params.max_tokens:
            return [*of_prompt, *outputs, _output(eos, params, finish_reason="stop", stop_token_id=eos)]
        outputs = outputs[: params.max_tokens - 1]
        return [*of_prompt, *outputs, _output(token_ids[params.max_tokens - 1], params, "length")]

    return script


def _prompt_outputs(prompt: list[int], params: SamplingParams) -> list[RequestOutput]:
    """Two tokens an output. The best token is 0, then the prompt's own."""
    if params.prompt_logprobs is None:
        return []
    scores = [
        TokenLogprobs(
            -float(place), [0, token][: params.prompt_logprobs], [-0.25, -float(place)][: params.prompt_logprobs], 2
        )
        for place, token in enumerate(prompt)
    ]
    return [
        RequestOutput("0", [], prompt_logprobs=scores[begin : begin + 2][: len(prompt) - begin])
        for begin in range(1, len(prompt), 2)
    ]


def refuse(code: str, message: str) -> Script:
    return lambda prompt, params: [RequestOutput("0", [], finish_reason="error", error=message, error_code=code)]


def _output(
    token_id: int, params: SamplingParams, finish_reason: str | None = None, stop_token_id: int | None = None
) -> RequestOutput:
    logprobs = None
    if params.logprobs is not None:
        best = [token_id, 0][: params.logprobs]
        logprobs = [TokenLogprobs(-0.5, best, [-0.5, -1.5][: len(best)])]
    return RequestOutput("0", [token_id], logprobs, finish_reason, stop_token_id)


class FakeClient:
    """``hang_after``: after so many outputs no more come, until ``go_on`` or abort, or until the engine dies."""

    def __init__(self, script: Script, hang_after: int | None = None) -> None:
        self.script = script
        self.hang_after = hang_after
        self.reports = ["rank 0: everything"]
        self.stats: EngineStats | None = None
        self.death: str | None = None
        self.died = asyncio.Event()
        self.closed = False
        self.requests: list[tuple[list[int], SamplingParams]] = []
        self.hanging = asyncio.Event()
        self.go_on = asyncio.Event()
        self.num_aborted = 0
        self.aborted = asyncio.Event()

    async def stream(self, prompt: list[int], params: SamplingParams) -> AsyncIterator[RequestOutput]:
        self.requests.append((prompt, params))
        finished = False
        try:
            for index, output in enumerate(self.script(prompt, params)):
                if index == self.hang_after:
                    self.hanging.set()
                    await self.go_on.wait()
                if self.death is not None:
                    raise EngineDeadError(self.death)
                await asyncio.sleep(0)
                finished = output.finish_reason is not None
                yield output
        finally:
            if not finished:
                self.num_aborted += 1
                self.aborted.set()

    def die(self, reason: str) -> None:
        self.death = reason
        self.died.set()
        self.go_on.set()

    async def close(self) -> None:
        self.closed = True


def make_engine(folder: Path, script_text: str = "hello", max_model_len: int = 100, **options: Any) -> TextEngine:
    """Call it in a running event loop."""
    tokenizer = make_tokenizer(folder)
    info = make_info(tokenizer, max_model_len)
    return TextEngine(FakeClient(answer(tokenizer, script_text), **options), tokenizer, info)


@dataclass
class Front:
    port: int
    engine: TextEngine
    task: "asyncio.Task[int]"
    http: httpx.AsyncClient

    @property
    def client(self) -> FakeClient:
        assert isinstance(self.engine.client, FakeClient)
        return self.engine.client

    async def exit_code(self) -> int:
        return await asyncio.wait_for(self.task, LIMIT_S)


@asynccontextmanager
async def running(
    engine: TextEngine, loaded: asyncio.Event | None = None, keep_alive_s: float = 15.0, **options: Any
) -> AsyncIterator[Front]:
    """The real ``serve`` on a free port. ``loaded``: the model loads until it is set. Stopped by SIGTERM at the end."""

    async def start_engine(config: EngineConfig, name: str) -> TextEngine:
        if loaded is not None:
            await loaded.wait()
        return engine

    config = ServeConfig(port=free_port(), log_level="warning", **options)
    task = asyncio.create_task(serve(config, start_engine, keep_alive_s))
    async with httpx.AsyncClient(base_url=f"http://127.0.0.1:{config.port}", timeout=LIMIT_S) as http:
        try:
            await wait_for_status(http, "/health" if loaded is not None else "/ready", 200, task)
            yield Front(config.port, engine, task, http)
        finally:
            if not task.done():
                os.kill(os.getpid(), signal.SIGTERM)
            await asyncio.wait_for(asyncio.gather(task, return_exceptions=True), LIMIT_S)


async def wait_for_status(http: httpx.AsyncClient, path: str, status: int, task: "asyncio.Task[int]") -> None:
    deadline = time.monotonic() + LIMIT_S
    while True:
        try:
            if (await http.get(path)).status_code == status:
                return
        except httpx.TransportError:
            if task.done():
                raise
        assert time.monotonic() < deadline, f"{path} did not answer {status} within {LIMIT_S:g} s"
        await asyncio.sleep(0.01)


def free_port() -> int:
    """Below the ports that the kernel gives to connections: one of those, of a test beside this one, may take it before
    the server does."""
    for port in random.sample(range(15_000, 32_000), 100):
        with socket.socket() as probe:
            try:
                probe.bind(("127.0.0.1", port))
            except OSError:
                continue
            return port
    raise AssertionError("of 100 ports none is free")
