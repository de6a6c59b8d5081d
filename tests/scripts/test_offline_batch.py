"""The example of an own program: what it asks of ``LLM``, without an engine."""

from types import SimpleNamespace
from typing import Any, Self

import pytest

from scripts import offline_batch
from splitrank.serving.offline.llm import _make_config
from splitrank.serving.options.config import EngineConfig


class FakeLLM:
    """Takes the options as ``LLM`` does, and answers every conversation with its question."""

    configs: list[EngineConfig] = []

    def __init__(self, *, model: str | None = None, **options: Any) -> None:
        self.configs.append(_make_config(model, options))

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        pass

    def chat(self, conversations: list[Any], *_: object, **__: object) -> list[SimpleNamespace]:
        texts = [conversation[0]["content"] for conversation in conversations]
        return [SimpleNamespace(text=text, token_ids=[1, 2], finish_reason="stop") for text in texts]


@pytest.mark.parametrize(
    ("arguments", "model", "pp"), [([], "", 1), (["Why?", "--model", "folder", "--pp", "2"], "folder", 2)]
)
def test_options_and_answers(
    arguments: list[str], model: str, pp: int, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("sys.argv", ["offline_batch.py", *arguments])
    monkeypatch.setattr(offline_batch, "LLM", FakeLLM)
    assert offline_batch.main() == 0
    config = FakeLLM.configs.pop()
    assert (config.model, config.pp) == (model, pp)
    question = arguments[0] if arguments else offline_batch.EXAMPLES[0]
    assert f"Q: {question}\nA: {question} (2 tokens, stop)" in capsys.readouterr().out
