"""Bytes of a request to a checked ``ParsedRequest``. Needs tokenizer and config only, no running engine."""

import re
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any, Literal, TypeVar

import msgspec

from splitrank.serving.openai.chat import refuse_other_parts, template_variables
from splitrank.serving.openai.errors import ApiError, bad_request, context_length_exceeded
from splitrank.serving.openai.sampling import check_token_ids, choice_params, sampling_params
from splitrank.serving.openai.settings import DEFAULT_SETTINGS, ApiSettings
from splitrank.serving.openai.strict_json import parse_object
from splitrank.serving.openai.tools import asked_tools
from splitrank.serving.openai.types import ChatBody, CompletionBody
from splitrank.serving.openai.unsupported import refuse_unsupported
from splitrank.serving.protocol.sampling_params import SamplingParams
from splitrank.serving.protocol.seeds import with_seed
from splitrank.serving.text.detokenizer import PLAIN_TEXT, TextForm
from splitrank.serving.text.model_info import ModelInfo
from splitrank.serving.text.prompt_length import PromptTooLongError
from splitrank.serving.text.thinking import ends_inside_thinking
from splitrank.serving.text.tokenizer import Tokenizer

CHAT_URL = "/v1/chat/completions"
COMPLETIONS_URL = "/v1/completions"
MAX_CHOICES = 256

Body = TypeVar("Body", ChatBody, CompletionBody)


@dataclass(frozen=True)
class Prompt:
    token_ids: list[int]
    text: str  # shown by echo; empty without it


@dataclass(frozen=True)
class Generation:
    """One choice of the answer: one request to the engine."""

    index: int
    prompt: int  # which of the request's prompts
    params: SamplingParams


@dataclass(frozen=True)
class ParsedRequest:
    kind: Literal["chat", "completion"]
    prompts: tuple[Prompt, ...]
    generations: tuple[Generation, ...]
    stream: bool
    include_usage: bool
    return_token_ids: bool
    form: TextForm = PLAIN_TEXT

    def with_seeds(self, *parts: int | str) -> "ParsedRequest":
        """Choices that have no seed get one, made of ``parts`` and of their index."""
        seeded = [replace(one, params=with_seed(one.params, *parts, one.index)) for one in self.generations]
        return replace(self, generations=tuple(seeded))

    @property
    def num_prompt_tokens(self) -> int:
        """Of all prompts, each counted once."""
        return sum(len(prompt.token_ids) for prompt in self.prompts)

    def prompt_of(self, generation: Generation) -> Prompt:
        return self.prompts[generation.prompt]


class RequestParser:
    """Checks requests against one model. Safe to call from several threads."""

    def __init__(self, tokenizer: Tokenizer, info: ModelInfo, settings: ApiSettings = DEFAULT_SETTINGS) -> None:
        self._tokenizer = tokenizer
        self._info = info
        self._settings = settings

    def parse(self, url: str, body: bytes) -> ParsedRequest:
        """``url`` is the path. Raises ``ApiError`` 400 for anything wrong, 404 for an unknown path or model."""
        if url not in (CHAT_URL, COMPLETIONS_URL):
            raise ApiError(404, f"unknown url {url!r}", code="not_found")
        try:
            return self._parse(url, parse_object(body))
        except RecursionError:
            raise bad_request("the body is nested too deeply") from None

    def _parse(self, url: str, raw: dict[str, Any]) -> ParsedRequest:
        if isinstance(raw.get("model"), str):
            self.check_model(raw["model"])
        refuse_unsupported(raw, is_chat=url == CHAT_URL)
        if url == CHAT_URL:
            return self._chat(_convert(raw, ChatBody))
        return self._completion(_convert(raw, CompletionBody))

    def check_model(self, name: str) -> None:
        """Raises ``ApiError`` 404 for any other name than the served one."""
        if name != self._info.name:
            message = f"the model {name[:200]!r} does not exist; this server serves {self._info.name!r}"
            raise ApiError(404, message, param="model", code="model_not_found")

    def _chat(self, body: ChatBody) -> ParsedRequest:
        refuse_other_parts(body)
        messages = [msgspec.to_builtins(message) for message in body.messages]
        tools = asked_tools(body, self._settings)
        with self._refusals("messages"):
            text = self._tokenizer.render_chat(messages, template_variables(body), tools.described)
            text += tools.opening(text)
            token_ids = self._tokenizer.encode_rendered(text, self._info.max_model_len)
        form = TextForm(self._settings.parts_thinking and ends_inside_thinking(text), tools.form)
        return self._request("chat", body, [Prompt(token_ids, "")], form)

    def _completion(self, body: CompletionBody) -> ParsedRequest:
        if body.echo and body.logprobs is not None:
            raise bad_request("echo with logprobs is not supported: there are no logprobs of the prompt", "echo")
        prompts = [self._prompt(prompt, bool(body.echo)) for prompt in _split_prompts(body.prompt)]
        return self._request("completion", body, prompts)

    def _prompt(self, prompt: str | list[int], echo: bool) -> Prompt:
        if isinstance(prompt, str):
            with self._refusals("prompt"):
                return Prompt(self._tokenizer.encode(prompt, self._info.max_model_len), prompt if echo else "")
        if len(prompt) >= self._info.max_model_len:
            raise context_length_exceeded(self._info.max_model_len, len(prompt), "prompt")
        check_token_ids(prompt, self._info, "prompt")
        return Prompt(prompt, self._tokenizer.decode(prompt) if echo else "")

    @contextmanager
    def _refusals(self, param: str) -> Iterator[None]:
        """What template and tokenizer refuse, in the client's terms."""
        try:
            yield
        except PromptTooLongError as error:
            raise context_length_exceeded(self._info.max_model_len, f"at least {error.num_tokens}", param) from None
        except ValueError as error:
            raise bad_request(str(error), param) from None

    def _request(
        self,
        kind: Literal["chat", "completion"],
        body: ChatBody | CompletionBody,
        prompts: list[Prompt],
        form: TextForm = PLAIN_TEXT,
    ) -> ParsedRequest:
        if body.stream_options is not None and not body.stream:
            raise bad_request("stream_options needs stream: true", "stream_options")
        return ParsedRequest(
            kind=kind,
            prompts=tuple(prompts),
            generations=self._generations(body, prompts),
            stream=bool(body.stream),
            include_usage=body.stream_options is not None and bool(body.stream_options.include_usage),
            return_token_ids=bool(body.return_token_ids),
            form=form,
        )

    def _generations(self, body: ChatBody | CompletionBody, prompts: list[Prompt]) -> tuple[Generation, ...]:
        n = 1 if body.n is None else body.n
        if n * len(prompts) > MAX_CHOICES:
            raise bad_request(f"{len(prompts)} prompts x n = {n} is more than {MAX_CHOICES} choices", "prompt")
        if n * len(prompts) > self._info.max_open_requests:
            room = f"the {self._info.max_open_requests} places of this server, running and queued"
            raise bad_request(f"{len(prompts)} prompts x n = {n} is more than {room}", "n" if n > 1 else "prompt")
        generations: list[Generation] = []
        for position, prompt in enumerate(prompts):
            if not prompt.token_ids:
                raise bad_request("the prompt is empty", "messages" if isinstance(body, ChatBody) else "prompt")
            params = sampling_params(body, self._info, len(prompt.token_ids))
            for index in range(n):
                own = choice_params(params, index)
                generations.append(Generation(len(generations), position, own))
        return tuple(generations)


def _convert(raw: dict[str, Any], body_type: type[Body]) -> Body:
    try:
        return msgspec.convert(raw, body_type, strict=True)
    except msgspec.ValidationError as error:
        message = str(error)
        at = re.search(r" - at `(?:key in )?\$\.?(.*)`$", message)
        missing = re.search(r"missing required field `(\w+)`$", message)
        param = at[1] if at else missing[1] if missing else None
        raise bad_request(message.replace(" - at `$.", " - at `"), param) from None


def _split_prompts(prompt: str | list[str | int | list[int]]) -> list[str | list[int]]:
    """One string, strings, ids, or lists of ids; mixed lists are refused."""
    if isinstance(prompt, str):
        return [prompt]
    ids = [item for item in prompt if isinstance(item, int)]
    if ids and len(ids) == len(prompt):
        return [ids]
    prompts = [item for item in prompt if not isinstance(item, int)]
    if not prompts:
        raise bad_request("the prompt is empty", "prompt")
    if ids or len({type(item) for item in prompts}) > 1:
        raise bad_request("prompt must hold strings only, token ids only, or lists of token ids only", "prompt")
    return prompts
