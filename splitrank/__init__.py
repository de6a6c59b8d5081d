"""splitrank: serves Qwen3.5-MoE split over pipeline and tensor ranks. ``from splitrank import LLM``."""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from splitrank.serving.offline.llm import LLM

__version__ = "0.1.0"
__all__ = ["LLM", "__version__"]


def __getattr__(name: str) -> Any:
    # Lazy, because every rank process imports this package and needs neither the tokenizer nor the client.
    if name == "LLM":
        from splitrank.serving.offline.llm import LLM

        return LLM
    raise AttributeError(f"module 'splitrank' has no attribute {name!r}")
