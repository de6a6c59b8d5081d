"""What a chat's body says to the template."""

from typing import Any

from splitrank.serving.openai.errors import bad_request
from splitrank.serving.openai.settings import ApiSettings
from splitrank.serving.openai.types import ChatBody
from splitrank.serving.text.chat_messages import ChatTemplateError
from splitrank.serving.text.chat_template import Ending, check_variables


def template_variables(body: ChatBody, settings: ApiSettings) -> dict[str, Any]:
    """``enable_thinking`` is what ``chat_template_kwargs`` says, else what follows from ``reasoning_effort``, else the
    server's default. Raises ``ApiError`` 400 for variables that a client may not set."""
    variables = dict(body.chat_template_kwargs or {})
    try:
        check_variables(variables)
    except ChatTemplateError as error:
        raise bad_request(str(error), "chat_template_kwargs") from None
    if variables.get("enable_thinking") is None:  # null is absent
        variables.pop("enable_thinking", None)
    asked = body.enable_thinking
    if asked is not None and variables.setdefault("enable_thinking", asked) is not asked:
        raise bad_request("enable_thinking contradicts chat_template_kwargs", "enable_thinking")
    if body.reasoning_effort is not None:
        variables.setdefault("enable_thinking", body.reasoning_effort not in ("none", "minimal"))
    return settings.chat_template_kwargs | variables


def prompt_ending(body: ChatBody) -> Ending:
    """How the prompt ends. Raises ``ApiError`` 400 for two endings at once."""
    if not body.continue_final_message:
        return Ending.NOTHING if body.add_generation_prompt is False else Ending.ANSWER
    if body.add_generation_prompt:
        message = "continue_final_message and add_generation_prompt are both true: the prompt has one end"
        raise bad_request(message, "continue_final_message")
    return Ending.OPEN


def refuse_other_parts(body: ChatBody) -> None:
    """Raises ``ApiError`` 400 for content that is no text."""
    for index, message in enumerate(body.messages):
        for position, part in enumerate(message.content if isinstance(message.content, list) else []):
            param = f"messages[{index}].content[{position}]"
            if part.type != "text":
                raise bad_request(f"content of type {part.type!r} is not supported, only text", f"{param}.type")
            if part.text is None:
                raise bad_request(f"{param} has no text", f"{param}.text")
