"""Bytes of a request to a checked ``ParsedRequest``. Needs tokenizer and config only, no running engine."""

from collections.abc import Callable
from typing import Any

from splitrank.serving.openai.dialects import MESSAGES_URL, RESPONSES_URL
from splitrank.serving.openai.errors import ApiError, bad_request
from splitrank.serving.openai.grammars import asked_grammar, grammar_behind
from splitrank.serving.openai.messages import request as messages
from splitrank.serving.openai.messages.types import HARMLESS, CountBody, MessageBody
from splitrank.serving.openai.prompts import Prompts
from splitrank.serving.openai.requests import DirectAnswer, Generation, Kind, ParsedRequest, Prompt
from splitrank.serving.openai.responses import request as responses
from splitrank.serving.openai.sampling import bad_words_token_ids, choice_params, echoed_logprobs, sampling_params
from splitrank.serving.openai.settings import DEFAULT_SETTINGS, ApiSettings
from splitrank.serving.openai.strict_json import convert, convert_known, parse_object
from splitrank.serving.openai.tokens import DetokenizeBody, TokenizeBody, TokenRoutes
from splitrank.serving.openai.tools import narrowed
from splitrank.serving.openai.types import ChatBody, CompletionBody
from splitrank.serving.openai.unsupported import refuse_others, refuse_unsupported
from splitrank.serving.text.detokenizer import TextForm
from splitrank.serving.text.model_info import ModelInfo
from splitrank.serving.text.tokenizer import Tokenizer
from splitrank.serving.text.tool_calls import CallForm

CHAT_URL = "/v1/chat/completions"
COMPLETIONS_URL = "/v1/completions"
TOKENIZE_URL = "/tokenize"
DETOKENIZE_URL = "/detokenize"
COUNT_TOKENS_URL = MESSAGES_URL + "/count_tokens"
MAX_CHOICES = 256

Parsed = ParsedRequest | DirectAnswer


class RequestParser:
    """Checks requests against one model. Safe to call from several threads."""

    def __init__(self, tokenizer: Tokenizer, info: ModelInfo, settings: ApiSettings = DEFAULT_SETTINGS) -> None:
        self._info = info
        self._settings = settings
        self._tokenizer = tokenizer
        self._prompts = Prompts(tokenizer, info, settings)
        tokens = TokenRoutes(tokenizer, info, self._prompts)
        self._readers: dict[str, Callable[[dict[str, Any]], Parsed]] = {
            CHAT_URL: self._chat,
            COMPLETIONS_URL: self._completion,
            TOKENIZE_URL: lambda raw: tokens.tokenize(convert_known(raw, TokenizeBody)),
            RESPONSES_URL: self._response,
            MESSAGES_URL: self._message,
            COUNT_TOKENS_URL: self._count_tokens,
            DETOKENIZE_URL: lambda raw: tokens.detokenize(convert_known(raw, DetokenizeBody)),
        }

    def parse(self, url: str, body: bytes) -> Parsed:
        """``url`` is the path. Raises ``ApiError`` 400 for anything wrong, 404 for an unknown path or model."""
        if url not in self._readers:
            raise ApiError(404, f"unknown url {url!r}", code="not_found")
        try:
            raw = parse_object(body)
            if isinstance(raw.get("model"), str):
                self.check_model(raw["model"])
            return self._readers[url](raw)
        except RecursionError:
            raise bad_request("the body is nested too deeply") from None

    def check_model(self, name: str) -> None:
        """Raises ``ApiError`` 404 for any other name than the served one."""
        if name != self._info.name:
            message = f"the model {name[:200]!r} does not exist; this server serves {self._info.name!r}"
            raise ApiError(404, message, param="model", code="model_not_found")

    def _chat(self, raw: dict[str, Any]) -> ParsedRequest:
        refuse_unsupported(raw, is_chat=True)
        body = narrowed(convert(raw, ChatBody))
        prompt, form = self._prompts.chat(body)
        return self._request("chat", body, [prompt], form)

    def _completion(self, raw: dict[str, Any]) -> ParsedRequest:
        refuse_unsupported(raw, is_chat=False)
        body = convert(raw, CompletionBody)
        if body.max_tokens == 0 and not body.echo and body.prompt_logprobs is None:
            raise bad_request("max_tokens 0 needs echo or prompt_logprobs: there would be no answer", "max_tokens")
        form = TextForm(shows_special=body.skip_special_tokens is False)
        return self._request("completion", body, self._prompts.texts(body), form)

    def _response(self, raw: dict[str, Any]) -> ParsedRequest:
        body = responses.read_response(raw)
        try:
            chat = narrowed(responses.as_chat(body))
            prompt, form = self._prompts.chat(chat)
            return self._request("response", chat, [prompt], form, responses.echo(body))
        except ApiError as error:
            raise responses.in_our_terms(error) from None

    def _message(self, raw: dict[str, Any]) -> ParsedRequest:
        refuse_others(raw, MessageBody, HARMLESS)
        chat = messages.as_chat(convert(raw, MessageBody))
        try:
            prompt, form = self._prompts.chat(chat)
            return self._request("message", chat, [prompt], form)
        except ApiError as error:
            raise messages.in_our_terms(error) from None

    def _count_tokens(self, raw: dict[str, Any]) -> DirectAnswer:
        refuse_others(raw, CountBody, HARMLESS)
        chat = messages.as_chat(convert(raw, CountBody))
        try:
            prompt, _ = self._prompts.chat(chat, is_limited=False)
        except ApiError as error:
            raise messages.in_our_terms(error) from None
        return DirectAnswer({"input_tokens": len(prompt.token_ids)})

    def _request(
        self,
        kind: Kind,
        body: ChatBody | CompletionBody,
        prompts: list[Prompt],
        form: TextForm,
        echo: dict[str, Any] | None = None,
    ) -> ParsedRequest:
        options = body.stream_options
        if options is not None and not body.stream:
            raise bad_request("stream_options needs stream: true", "stream_options")
        if body.stream and body.prompt_logprobs is not None:
            raise bad_request("prompt_logprobs are not available in a stream", "prompt_logprobs", "unsupported_value")
        return ParsedRequest(
            kind=kind,
            prompts=tuple(prompts),
            generations=self._generations(body, prompts, form.calls),
            stream=bool(body.stream),
            include_usage=options is not None and bool(options.include_usage),
            usage_in_chunks=options is not None and bool(options.continuous_usage_stats),
            return_token_ids=bool(body.return_token_ids),
            names_ids=bool(body.return_tokens_as_token_ids),
            prompt_logprobs=body.prompt_logprobs,
            echoed_logprobs=echoed_logprobs(body),
            has_answer=body.max_tokens != 0,
            form=form,
            echo=echo or {},
        )

    def _generations(
        self, body: ChatBody | CompletionBody, prompts: list[Prompt], calls: CallForm | None
    ) -> tuple[Generation, ...]:
        n = 1 if body.n is None else body.n
        if n * len(prompts) > MAX_CHOICES:
            raise bad_request(f"{len(prompts)} prompts x n = {n} is more than {MAX_CHOICES} choices", "prompt")
        if n * len(prompts) > self._info.max_open_requests:
            room = f"the {self._info.max_open_requests} places of this server, running and queued"
            raise bad_request(f"{len(prompts)} prompts x n = {n} is more than {room}", "n" if n > 1 else "prompt")
        generations: list[Generation] = []
        grammar = asked_grammar(body, calls)
        bad_words = bad_words_token_ids(body.bad_words or [], self._tokenizer)
        for position, prompt in enumerate(prompts):
            if not prompt.token_ids:
                raise bad_request("the prompt is empty", "messages" if isinstance(body, ChatBody) else "prompt")
            held_to = grammar_behind(prompt.is_thinking, grammar, calls)
            params = sampling_params(body, self._info, self._settings, len(prompt.token_ids), held_to, bad_words)
            for index in range(n):
                own = choice_params(params, index)
                generations.append(Generation(len(generations), position, own))
        return tuple(generations)
