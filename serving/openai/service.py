"""Runs parsed requests and writes the answers: one body, or a stream of server-sent events."""

import asyncio
import time
import uuid
from collections.abc import AsyncGenerator
from contextlib import aclosing
from typing import Any, Protocol

import msgspec

from splitrank.serving.openai.chunks import ChunkEvents
from splitrank.serving.openai.dialects import DONE, named_event
from splitrank.serving.openai.errors import engine_errors_as_api_errors
from splitrank.serving.openai.formats import ChoiceFormat, Collected, choice_format
from splitrank.serving.openai.logprobs import TokenNames
from splitrank.serving.openai.merge import merge
from splitrank.serving.openai.messages.answer import MessageWriter
from splitrank.serving.openai.parser import Parsed, RequestParser
from splitrank.serving.openai.requests import Generation, ParsedRequest
from splitrank.serving.openai.responses.answer import ResponseWriter
from splitrank.serving.openai.settings import DEFAULT_SETTINGS, ApiSettings
from splitrank.serving.openai.usage import Usage
from splitrank.serving.text.model_info import ModelInfo
from splitrank.serving.text.text_engine import TextOutput, TextSource
from splitrank.serving.text.tokenizer import Tokenizer

_OBJECTS = {  # kind: prefix of the id, object of a body, object of a stream's chunk
    "chat": ("chatcmpl-", "chat.completion", "chat.completion.chunk"),
    "completion": ("cmpl-", "text_completion", "text_completion"),
}


class AnswerWriter(Protocol):
    """Writes the one answer to a request: ``add`` its outputs, then ``finish``, then it is ``whole``."""

    def add(self, output: TextOutput) -> list[dict[str, Any]]: ...

    def finish(self, usage: Usage) -> list[dict[str, Any]]: ...

    def whole(self) -> dict[str, Any]: ...


class OpenAIService:
    """``complete`` and ``stream_events`` raise ``ApiError`` if the engine refuses, ``EngineDeadError`` if it dies.

    Cancelling or closing either of them aborts every engine request behind it.
    """

    def __init__(self, engine: TextSource, settings: ApiSettings = DEFAULT_SETTINGS) -> None:
        self._engine = engine
        self.settings = settings
        self._parser = RequestParser(engine.tokenizer, engine.info, settings)

    @property
    def info(self) -> ModelInfo:
        return self._engine.info

    @property
    def tokenizer(self) -> Tokenizer:
        return self._engine.tokenizer

    def parse(self, url: str, body: bytes) -> Parsed:
        """See ``RequestParser.parse``. Takes as long as tokenizing takes: call it in a thread."""
        return self._parser.parse(url, body)

    def check_model(self, name: str) -> None:
        """Raises ``ApiError`` 404 for any other name than the served one."""
        self._parser.check_model(name)

    async def complete(self, request: ParsedRequest, usage: Usage | None = None) -> dict[str, Any]:
        """The response body, once all choices are finished; parts of it are ``msgspec.Raw`` JSON. ``usage`` counts."""
        usage = usage or Usage(request)
        if request.kind not in _OBJECTS:
            writer = self._writer(request)
            async with aclosing(self._written(request, writer, usage)) as events:
                async for _ in events:
                    pass
            return writer.whole()
        try:
            async with asyncio.TaskGroup() as group:
                tasks = [group.create_task(self._collect(request, one, usage)) for one in request.generations]
        except BaseExceptionGroup as errors:
            raise errors.exceptions[0] from None  # the others failed of the same cause, or were cancelled
        choices = [task.result() for task in tasks]
        body = {**self._envelope(request, stream=False), "choices": choices, "usage": usage.whole()}
        if request.kind == "chat" and request.prompt_logprobs is not None:
            # There is one prompt, so vLLM has them beside the choices.
            body["prompt_logprobs"] = [choice.pop("prompt_logprobs") for choice in choices].pop()
        return body

    async def stream_events(self, request: ParsedRequest, usage: Usage | None = None) -> AsyncGenerator[bytes, None]:
        """Server-sent events, those of one output together. The first come with the first token: the request was
        accepted then."""
        usage = usage or Usage(request)
        if request.kind not in _OBJECTS:
            async with aclosing(self._written(request, self._writer(request), usage)) as events:
                async for some in events:
                    yield b"".join(map(named_event, some))
            return
        chunks = ChunkEvents(self._envelope(request, stream=True), shows_usage=request.include_usage)
        formats = [choice_format(request, self._engine.tokenizer, generation) for generation in request.generations]
        started = [False] * len(formats)
        sources = [self._outputs(request, generation) for generation in request.generations]
        with engine_errors_as_api_errors():
            async with aclosing(merge(sources)) as outputs:
                async for index, output in outputs:
                    usage.add(index, output)
                    parts = _parts(request, request.generations[index], formats[index], output, not started[index])
                    started[index] = True
                    counts = usage.whole() if request.usage_in_chunks else None
                    if parts:
                        yield chunks.parts(index, parts, counts)
        yield chunks.usage(usage.whole()) + DONE if request.include_usage else DONE

    def _writer(self, request: ParsedRequest) -> AnswerWriter:
        if request.kind == "message":
            return MessageWriter(request, self._engine.info.name)
        return ResponseWriter(request, self._engine.info.name, TokenNames(self._engine.tokenizer))

    async def _written(
        self, request: ParsedRequest, writer: AnswerWriter, usage: Usage
    ) -> AsyncGenerator[list[dict[str, Any]], None]:
        """Events of an API whose answers are rows of blocks, those of one output together."""
        with engine_errors_as_api_errors():
            async with aclosing(self._outputs(request, request.generations[0])) as outputs:
                async for output in outputs:
                    usage.add(0, output)
                    if events := writer.add(output):
                        yield events
        yield writer.finish(usage)

    def _outputs(self, request: ParsedRequest, generation: Generation) -> AsyncGenerator[TextOutput, None]:
        outputs = self._engine.stream(request.prompt_of(generation).token_ids, generation.params, request.form)
        return outputs if request.has_answer else _of_prompt_alone(outputs)

    async def _collect(self, request: ParsedRequest, generation: Generation, usage: Usage) -> dict[str, Any]:
        """One choice, whole."""
        answer, format = Collected(), choice_format(request, self._engine.tokenizer, generation)
        with engine_errors_as_api_errors():
            async with aclosing(self._outputs(request, generation)) as outputs:
                async for output in outputs:
                    usage.add(generation.index, output)
                    format.collect(output)
                    answer.add(msgspec.structs.replace(output, logprobs=None, prompt_logprobs=None))
        choice = {"index": generation.index, **format.whole(answer)}
        if request.return_token_ids:
            choice |= {"prompt_token_ids": request.prompt_of(generation).token_ids, "token_ids": answer.token_ids}
        return choice

    def _envelope(self, request: ParsedRequest, stream: bool) -> dict[str, Any]:
        prefix, body_object, chunk_object = _OBJECTS[request.kind]
        return {
            "id": prefix + uuid.uuid4().hex,
            "object": chunk_object if stream else body_object,
            "created": int(time.time()),
            "model": self._engine.info.name,
            "system_fingerprint": self._engine.info.fingerprint,
        }


def _parts(
    request: ParsedRequest, generation: Generation, format: ChoiceFormat, output: TextOutput, is_first: bool
) -> list[dict[str, Any]]:
    """What one output adds to a stream: opening, text, ending, each only if there is something to say."""
    parts: list[dict[str, Any]] = []
    if is_first and (opening := format.opening(is_needed=request.return_token_ids)) is not None:
        parts.append(opening)
        if request.return_token_ids:
            opening["prompt_token_ids"] = request.prompt_of(generation).token_ids
    has_news = output.text or output.reasoning or output.calls or output.logprobs or output.prompt_logprobs
    if has_news or (request.return_token_ids and output.token_ids):
        parts += format.parts(output)
        if request.return_token_ids:
            parts[-1]["token_ids"] = output.token_ids
    if output.finish_reason is not None:
        parts.append(format.ending(output))
    return parts


async def _of_prompt_alone(outputs: AsyncGenerator[TextOutput, None]) -> AsyncGenerator[TextOutput, None]:
    """Without the one token that the engine has sampled."""
    async with aclosing(outputs):
        async for output in outputs:
            reason = None if output.finish_reason is None else "length"
            yield TextOutput(
                "",
                [],
                finish_reason=reason,
                num_cached_tokens=output.num_cached_tokens,
                prompt_logprobs=output.prompt_logprobs,
            )
