"""What the server's options say about requests and answers."""

from dataclasses import dataclass

from splitrank.serving.options.config import ServedModelConfig


@dataclass(frozen=True)
class ApiSettings:
    """See the options of the same names. The default is that of a command without flags."""

    reasoning_parser: str = "qwen3"

    @classmethod
    def of(cls, config: ServedModelConfig) -> "ApiSettings":
        return cls(reasoning_parser=config.reasoning_parser)

    @property
    def parts_thinking(self) -> bool:
        """Whether thoughts are an answer's ``reasoning_content``."""
        return self.reasoning_parser != "none"


DEFAULT_SETTINGS = ApiSettings()
