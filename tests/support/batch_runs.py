"""``splitrank generate`` from file to file, with a scripted model in place of the processes."""

import dataclasses
import json
from pathlib import Path
from typing import Any

import pytest

from splitrank.serving.batch import command
from splitrank.serving.batch.config import GenerateConfig
from splitrank.serving.text.model_info import model_info
from splitrank.serving.text.text_engine import PreparedModel, TextEngine
from tests.support.offline_fakes import Script, ScriptedEngines, echo, prepared_model

Row = dict[str, Any]
NAMES = [f"n{index}" for index in range(20)]
ALL = {name: f"SAY {name.upper()}" for name in NAMES}


def request(name: str) -> Row:
    body = {"prompt": f"say {name}", "max_tokens": 64}
    return {"custom_id": name, "method": "POST", "url": "/v1/completions", "body": body}


class Batch:
    """An input file, an output file and a model; ``run`` is the command, as often as wanted."""

    def __init__(self, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        self.input, self.output = folder / "in.jsonl", folder / "out.jsonl"
        self.model = folder / "model"
        self.engines = ScriptedEngines()
        self.spec: dict[str, object] = {}
        monkeypatch.setattr(command, "prepare_model", self._prepare)
        monkeypatch.setattr(command, "start_prepared", self._start)

    def _prepare(self, config: GenerateConfig, served_model_name: str = "") -> PreparedModel:
        prepared = prepared_model(self.model, **self.spec)
        return dataclasses.replace(prepared, info=model_info(prepared.spec, config.model, served_model_name))

    async def _start(self, prepared: PreparedModel) -> TextEngine:
        return await self.engines.start(prepared)

    def write(self, names: list[str]) -> None:
        self.input.write_text("".join(json.dumps(request(name)) + "\n" for name in names))

    def run(self, script: Script = echo, **options: object) -> int:
        self.engines.script = script
        values = {"input": str(self.input), "output": str(self.output), **options}
        return command.run(GenerateConfig(**values))  # type: ignore[arg-type]

    def results(self) -> dict[str, Row]:
        rows = [json.loads(line) for line in self.output.read_text().splitlines()]
        by_name = {row["custom_id"]: row for row in rows}
        assert len(by_name) == len(rows)
        return by_name

    def texts(self) -> dict[str, str]:
        return {name: row["response"]["body"]["choices"][0]["text"] for name, row in self.results().items()}
