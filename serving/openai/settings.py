"""What the server's options say about requests and answers."""

from dataclasses import dataclass

from splitrank.serving.options.config import ServedModelConfig


@dataclass(frozen=True)
class ApiSettings:
    """See the options of the same names. The default is that of a command without flags."""

    reasoning_parser: str = "qwen3"
    tool_call_parser: str = "qwen3_coder"

    @classmethod
    def of(cls, config: ServedModelConfig) -> "ApiSettings":
        return cls(reasoning_parser=config.reasoning_parser, tool_call_parser=config.tool_call_parser)

    @property
    def parts_thinking(self) -> bool:
        """Whether thoughts are an answer's ``reasoning_content``."""
        return self.reasoning_parser != "none"

    @property
    def finds_tool_calls(self) -> bool:
        """Whether calls of tools are an answer's ``tool_calls``."""
        return self.tool_call_parser != "none"


DEFAULT_SETTINGS = ApiSettings()
