"""Options of ``splitrank generate``."""

from dataclasses import dataclass

from splitrank.serving.config import EngineConfig, option


@dataclass(frozen=True, kw_only=True)
class GenerateConfig(EngineConfig):
    """``splitrank generate``."""

    input: str = option("", "file of OpenAI batch lines")
    output: str = option("", "file for the result lines; a rerun with the same file continues it")
    overwrite: bool = option(False, "start anew when the output exists, instead of continuing it")
    concurrency: int = option(64, "requests open at once")

    def __post_init__(self) -> None:
        super().__post_init__()
        for name in ("input", "output"):
            if not getattr(self, name):
                raise ValueError(f"--{name} is required")
        room = self.max_running_requests + self.max_queued_requests
        if not 1 <= self.concurrency <= room:
            raise ValueError(f"concurrency must be between 1 and {room} (running plus queued), not {self.concurrency}")
