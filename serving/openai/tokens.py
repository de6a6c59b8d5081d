"""/tokenize and /detokenize: text or a conversation to token ids, and back."""

from typing import Annotated, Any

import msgspec

from splitrank.serving.openai.errors import bad_request
from splitrank.serving.openai.prompts import Prompts
from splitrank.serving.openai.requests import DirectAnswer
from splitrank.serving.openai.sampling import check_token_ids
from splitrank.serving.openai.types import ChatBody, CompletionBody, Message, TokenId, Tool
from splitrank.serving.text.model_info import ModelInfo
from splitrank.serving.text.tokenizer import Tokenizer


class TokenizeBody(msgspec.Struct, kw_only=True):
    """Either ``prompt``, or ``messages`` and what else shapes a chat's prompt."""

    model: str | None = None
    prompt: str | None = None
    messages: list[Message] | None = None
    tools: list[Tool] | None = None
    add_special_tokens: bool | None = None
    add_generation_prompt: bool | None = None
    continue_final_message: bool | None = None
    chat_template_kwargs: dict[str, Any] | None = None
    return_token_strs: Annotated[bool | None, msgspec.Meta(description="the tokens' texts as well")] = None


class DetokenizeBody(msgspec.Struct, kw_only=True):
    model: str | None = None
    tokens: list[TokenId]


class TokenRoutes:
    """The answers of both urls."""

    def __init__(self, tokenizer: Tokenizer, info: ModelInfo, prompts: Prompts) -> None:
        self._tokenizer = tokenizer
        self._info = info
        self._prompts = prompts

    def tokenize(self, body: TokenizeBody) -> DirectAnswer:
        """As many tokens as there are, also beyond the context."""
        token_ids = self._token_ids(body)
        tokens = [self._tokenizer.token_bytes(one).decode(errors="replace") for one in token_ids]
        return DirectAnswer(
            {
                "count": len(token_ids),
                "max_model_len": self._info.max_model_len,
                "tokens": token_ids,
                "token_strs": tokens if body.return_token_strs else None,
            }
        )

    def detokenize(self, body: DetokenizeBody) -> DirectAnswer:
        check_token_ids(body.tokens, self._info, "tokens")
        return DirectAnswer({"prompt": self._tokenizer.decode(body.tokens, shows_special=True)})

    def _token_ids(self, body: TokenizeBody) -> list[int]:
        if (body.prompt is None) == (body.messages is None):
            raise bad_request("give either prompt or messages", "prompt")
        if body.prompt is not None:
            text = CompletionBody(prompt=body.prompt, add_special_tokens=body.add_special_tokens)
            return self._prompts.texts(text, is_limited=False)[0].token_ids
        names = (
            "tools",
            "add_special_tokens",
            "add_generation_prompt",
            "continue_final_message",
            "chat_template_kwargs",
        )
        fields: dict[str, Any] = {name: getattr(body, name) for name in names}
        return self._prompts.chat(ChatBody(messages=body.messages or [], **fields), is_limited=False)[0].token_ids
