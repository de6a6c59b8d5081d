"""What the server's options say about requests and answers."""

from dataclasses import dataclass, field
from typing import Any

from splitrank.serving.options.config import ServedModelConfig
from splitrank.serving.text.chat_template import check_variables
from splitrank.serving.text.strict_json import parse_json


@dataclass(frozen=True)
class ApiSettings:
    """See the options of the same names. The default is that of a command without flags."""

    reasoning_parser: str = "qwen3"
    tool_call_parser: str = "qwen3_coder"
    chat_template_kwargs: dict[str, Any] = field(default_factory=dict)
    clip_max_tokens: bool = False

    @classmethod
    def of(cls, config: ServedModelConfig) -> "ApiSettings":
        """Raises ``ValueError`` that names the option."""
        return cls(
            reasoning_parser=config.reasoning_parser,
            tool_call_parser=config.tool_call_parser,
            chat_template_kwargs=_variables(config.chat_template_kwargs),
            clip_max_tokens=config.clip_max_tokens,
        )

    @property
    def parts_thinking(self) -> bool:
        """Whether thoughts are an answer's ``reasoning_content``."""
        return self.reasoning_parser != "none"

    @property
    def finds_tool_calls(self) -> bool:
        """Whether calls of tools are an answer's ``tool_calls``."""
        return self.tool_call_parser != "none"


def _variables(text: str) -> dict[str, Any]:
    value = parse_json(text, "chat_template_kwargs") if text else {}
    if not isinstance(value, dict):
        example = '{"enable_thinking": false}'
        raise ValueError(f"chat_template_kwargs must be a JSON object like {example}, not {text[:80]}")
    check_variables(value)
    return value


DEFAULT_SETTINGS = ApiSettings()
