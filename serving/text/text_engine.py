"""The engine with text on top: stop strings, detokenising, and what clients may know of the model."""

import asyncio
from collections.abc import AsyncGenerator
from contextlib import aclosing
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Protocol

import msgspec

from splitrank.models.config import read_config
from splitrank.models.tied_head import describe_head
from splitrank.serving.launch.engine_client import EngineClient
from splitrank.serving.launch.output_stream import token_by_token
from splitrank.serving.launch.resolve import resolve_launch
from splitrank.serving.launch.stop_tokens import describe_stop_tokens, stop_tokens
from splitrank.serving.options.abandonable import in_daemon_thread
from splitrank.serving.options.config import EngineConfig
from splitrank.serving.protocol.messages import EngineStats, LaunchSpec, RequestOutput, TokenLogprobs
from splitrank.serving.protocol.sampling_params import SamplingParams
from splitrank.serving.text.detokenizer import PLAIN_TEXT, Detokenizer, ShownText, TextForm, joined
from splitrank.serving.text.model_info import ModelInfo, model_info
from splitrank.serving.text.request_errors import RequestEndedError
from splitrank.serving.text.tokenizer import Tokenizer, check_vocabulary
from splitrank.serving.text.tool_calls import CallDelta


class TextOutput(msgspec.Struct, frozen=True):
    """New text and tokens of one request. Text may lag behind the tokens: it shows whole characters only."""

    text: str  # of the answer
    token_ids: list[int]
    logprobs: list[TokenLogprobs] | None = None  # one for each of token_ids
    text_positions: list[int] = []  # with logprobs: which of token_ids are neither thoughts nor calls nor a stop token
    finish_reason: str | None = None  # "stop" or "length": the last output
    stop_reason: str | int | None = None  # the stop string or stop token id, if one of those ended it
    num_cached_tokens: int = 0  # of the prompt
    reasoning: str = ""  # new text of thoughts, where they are parted from the answer
    num_reasoning_tokens: int = 0  # of all outputs so far
    is_thinking: bool = False  # the thoughts have not ended yet
    calls: list[CallDelta] = []  # of tools
    has_calls: bool = False  # so far, and each of them has ended
    prompt_logprobs: list[TokenLogprobs] | None = None  # of the prompt's next tokens, from its second one on
    digests: list[bytes] = []  # of the logits of each of token_ids, if the launch spec asks for them


class Client(Protocol):
    """What is used of ``EngineClient``."""

    reports: list[str]
    stats: EngineStats | None
    death: str | None
    died: asyncio.Event

    def stream(self, prompt_token_ids: list[int], params: SamplingParams) -> AsyncGenerator[RequestOutput, None]: ...

    async def close(self) -> None: ...


class TextSource(Protocol):
    """What the API needs of an engine."""

    @property
    def tokenizer(self) -> Tokenizer: ...

    @property
    def info(self) -> ModelInfo: ...

    def stream(
        self, prompt_token_ids: list[int], params: SamplingParams, form: TextForm = PLAIN_TEXT
    ) -> AsyncGenerator[TextOutput, None]: ...


class TextEngine:
    """A running engine and its tokenizer."""

    def __init__(self, client: Client, tokenizer: Tokenizer, info: ModelInfo) -> None:
        self.client = client
        self.tokenizer = tokenizer
        self.info = info

    async def stream(
        self, prompt_token_ids: list[int], params: SamplingParams, form: TextForm = PLAIN_TEXT
    ) -> AsyncGenerator[TextOutput, None]:
        """Outputs as the engine sends them, the last one with a ``finish_reason``.

        Closing or cancelling it aborts the request. Raises ``RequestEndedError`` if the engine refuses or
        ends the request, and ``EngineDeadError`` if it dies.
        """
        detokenizer = Detokenizer(self.tokenizer, params, form)
        async with aclosing(self.client.stream(prompt_token_ids, params)) as outputs:
            async for output in outputs:
                _check(output)
                # Several tokens may end a call and begin a text: only single ones show which came first.
                for one in (output,) if form.calls is None else token_by_token(output):
                    text_output = _to_text(one, detokenizer, params)
                    yield text_output
                    if text_output.finish_reason is not None:
                        return  # at a stop string, closing ``outputs`` aborts the request in the engine

    async def close(self) -> None:
        await self.client.close()


def _check(output: RequestOutput) -> None:
    """Raises ``RequestEndedError`` for an output that ends its request without an answer."""
    if output.finish_reason in ("error", "abort"):
        message = output.error or "the request was aborted by the engine"
        raise RequestEndedError(message, output.error_code or "aborted")
    if output.prompt_logprobs and any(one.logprob != one.logprob for one in output.prompt_logprobs):
        raise RequestEndedError("the model's logits for the prompt hold NaN", "invalid_numbers")


def _to_text(output: RequestOutput, detokenizer: Detokenizer, params: SamplingParams) -> TextOutput:
    num_shown = len(output.token_ids)
    if output.stop_token_id is not None and not params.include_stop_str_in_output:
        num_shown -= 1
    pieces: list[ShownText] = []
    text_positions: list[int] = []
    token_ids, logprobs = output.token_ids, output.logprobs
    for index, token_id in enumerate(output.token_ids[:num_shown]):
        was_in_text = output.logprobs is not None and detokenizer.is_in_text
        pieces.append(detokenizer.push(token_id))
        if was_in_text and detokenizer.is_in_text:
            text_positions.append(index)
        if pieces[-1].has_ended:
            token_ids = token_ids[: index + 1]
            logprobs = logprobs[: index + 1] if logprobs is not None else None
            break
    else:
        if output.finish_reason is not None:
            pieces.append(detokenizer.finish(is_cut=output.finish_reason != "stop"))
    shown = pieces[0] if len(pieces) == 1 else joined(pieces)
    return TextOutput(
        text=shown.text,
        token_ids=token_ids,
        logprobs=logprobs,
        text_positions=text_positions,
        finish_reason="stop" if shown.has_ended else output.finish_reason,
        stop_reason=_stop_token(output, params) if shown.stop is None else shown.stop,
        num_cached_tokens=output.num_cached_tokens,
        reasoning=shown.reasoning,
        num_reasoning_tokens=detokenizer.num_reasoning_tokens,
        is_thinking=detokenizer.is_thinking,
        calls=shown.calls,
        has_calls=detokenizer.has_calls,
        prompt_logprobs=output.prompt_logprobs,
        digests=output.digests[: len(token_ids)],
    )


def _stop_token(output: RequestOutput, params: SamplingParams) -> int | None:
    """The id that the request asked to stop at; the end of sequence alone is no reason worth telling."""
    return output.stop_token_id if output.stop_token_id in params.stop_token_ids else None


# ------------------------------------------------------------------ start


@dataclass(frozen=True)
class PreparedModel:
    """Known before any process starts: enough to check requests (``RequestParser(tokenizer, info)``)."""

    spec: LaunchSpec
    tokenizer: Tokenizer
    info: ModelInfo
    notes: list[str]  # for people: lines for the report at start


def prepare_model(config: EngineConfig, served_model_name: str = "") -> PreparedModel:
    """Reads headers, configs and tokenizer. Raises ``ValueError``, one line for the user."""
    spec = resolve_launch(config)
    tokenizer = Tokenizer.from_folder(spec.model_dir)
    check_vocabulary(tokenizer, spec.vocab_size)
    info = model_info(spec, config.model, served_model_name)
    return PreparedModel(spec, tokenizer, info, _notes(spec, tokenizer))


async def start_prepared(prepared: PreparedModel) -> TextEngine:
    """Starts the processes. Raises ``EngineStartError`` and leaves none of them behind."""
    client = await EngineClient.start(prepared.spec)
    client.reports += prepared.notes
    return TextEngine(client, prepared.tokenizer, prepared.info)


def _notes(spec: LaunchSpec, tokenizer: Tokenizer) -> list[str]:
    """What was made of the checkpoint's settings: which tokens end a text, and a head that config.json ties."""
    folder = Path(spec.model_dir)
    found = stop_tokens(folder, spec.vocab_size)
    lines = [describe_stop_tokens(found, lambda token: tokenizer.token_bytes(token).decode(errors="replace"))]
    declared = read_config(folder)
    if declared.tie_word_embeddings:
        lines.append(f"head: {describe_head(declared, spec.tie_word_embeddings)}")
    return lines


async def start_text_engine(config: EngineConfig, served_model_name: str = "") -> TextEngine:
    """``prepare_model``, in a thread that a cancelled start abandons, and ``start_prepared``."""
    prepared = in_daemon_thread(partial(prepare_model, config, served_model_name))
    return await start_prepared(await asyncio.wrap_future(prepared))
