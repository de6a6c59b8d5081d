"""Bodies to prompts: templates, tokens, and the refusals of both."""

from collections.abc import Iterator
from contextlib import contextmanager

import msgspec

from splitrank.serving.openai.chat import prompt_ending, refuse_other_parts, template_variables
from splitrank.serving.openai.errors import bad_request, context_length_exceeded
from splitrank.serving.openai.requests import Prompt
from splitrank.serving.openai.sampling import asked_tokens, check_token_ids
from splitrank.serving.openai.settings import ApiSettings
from splitrank.serving.openai.tools import asked_tools
from splitrank.serving.openai.types import ChatBody, CompletionBody
from splitrank.serving.text.detokenizer import TextForm
from splitrank.serving.text.model_info import ModelInfo
from splitrank.serving.text.prompt_length import PromptTooLongError
from splitrank.serving.text.thinking import ends_inside_thinking
from splitrank.serving.text.tokenizer import Tokenizer


class Prompts:
    """Everything raises ``ApiError`` 400 for what is wrong or too long."""

    def __init__(self, tokenizer: Tokenizer, info: ModelInfo, settings: ApiSettings) -> None:
        self._tokenizer = tokenizer
        self._info = info
        self._settings = settings

    def chat(self, body: ChatBody, is_limited: bool = True) -> tuple[Prompt, TextForm]:
        """The prompt, and how the answer to it is read. ``is_limited``: by the context."""
        refuse_other_parts(body)
        messages = [msgspec.to_builtins(message) for message in body.messages]
        tools = asked_tools(body, self._settings)
        with self._refusals("messages"):
            variables = template_variables(body, self._settings)
            text = self._tokenizer.render_chat(messages, variables, tools.described, prompt_ending(body))
            token_ids = self._encode(text, body, bool(body.add_special_tokens), is_limited)
        parts_thinking = self._settings.parts_thinking and body.separate_reasoning is not False
        shows_special = body.skip_special_tokens is False
        is_thinking = ends_inside_thinking(text)
        form = TextForm(is_thinking, tools.form, shows_special, parts_thinking)
        return Prompt(token_ids, "", is_thinking), form

    def texts(self, body: CompletionBody, is_limited: bool = True) -> list[Prompt]:
        return [self._text(prompt, body, is_limited) for prompt in _split_prompts(body.prompt)]

    def _text(self, prompt: str | list[int], body: CompletionBody, is_limited: bool) -> Prompt:
        if isinstance(prompt, str):
            with self._refusals("prompt"):
                token_ids = self._encode(prompt, body, body.add_special_tokens is not False, is_limited)
            if body.truncate_prompt_tokens is None:
                return Prompt(token_ids, prompt if body.echo else "")
        else:
            token_ids = self._truncated(prompt, body)
            if len(token_ids) >= self._info.max_model_len:
                raise context_length_exceeded(self._info.max_model_len, len(token_ids), "prompt")
            check_token_ids(token_ids, self._info, "prompt")
        return Prompt(token_ids, self._tokenizer.decode(token_ids, shows_special=True) if body.echo else "")

    def _encode(
        self, text: str, body: ChatBody | CompletionBody, add_special_tokens: bool, is_limited: bool
    ) -> list[int]:
        """A prompt that will be truncated is not too long, however long it is."""
        limit = self._info.max_model_len if is_limited and body.truncate_prompt_tokens is None else None
        return self._truncated(self._tokenizer.encode(text, limit, add_special_tokens), body)

    def _truncated(self, token_ids: list[int], body: ChatBody | CompletionBody) -> list[int]:
        kept = body.truncate_prompt_tokens
        if kept == 0:
            raise bad_request("truncate_prompt_tokens must be -1 or at least 1, not 0", "truncate_prompt_tokens")
        if kept == -1:
            kept = max(1, self._info.max_model_len - (asked_tokens(body) or 1))
        return token_ids if kept is None else token_ids[-kept:]

    @contextmanager
    def _refusals(self, param: str) -> Iterator[None]:
        """What template and tokenizer refuse, in the client's terms."""
        try:
            yield
        except PromptTooLongError as error:
            raise context_length_exceeded(self._info.max_model_len, f"at least {error.num_tokens}", param) from None
        except ValueError as error:
            raise bad_request(str(error), param) from None


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
