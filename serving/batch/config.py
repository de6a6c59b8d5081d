"""Options of ``splitrank generate``."""

from dataclasses import dataclass

from splitrank.serving.options.config import COUNT, ServedModelConfig, option


@dataclass(frozen=True, kw_only=True)
class GenerateConfig(ServedModelConfig):
    """``splitrank generate``."""

    input: str = option("", "file of OpenAI batch lines", metavar="FILE", required=True)
    output: str = option(
        "", "file for the result lines; a rerun with the same file continues it", metavar="FILE", required=True
    )
    overwrite: bool = option(False, "start anew when the output exists, instead of continuing it")
    concurrency: int = option(64, "requests open at once", bounds=COUNT)

    def __post_init__(self) -> None:
        super().__post_init__()
        self.check_concurrency(self.concurrency)
