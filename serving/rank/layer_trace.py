"""Digests of all that a stage's layers hand on, token by token, into a file a rank (``TraceLine``).

For finding where two layouts differ. Hooks, so that the model knows nothing of it.
"""

from pathlib import Path
from typing import Any

import msgspec
import torch

from splitrank.models.batch import Batch
from splitrank.models.hidden_states import HiddenStates
from splitrank.models.qwen3_5 import Stage
from splitrank.serving.protocol.messages import EMBEDDING, LOGITS, TraceHead, TraceLine
from splitrank.serving.rank.request_table import RequestTable
from splitrank.serving.rank.sampler import row_digest


class LayerTrace:
    """Hooks on the modules of ``model``; a file of its rank in ``folder`` until ``close``."""

    def __init__(self, folder: Path, name: str, rank: int, model: Stage, table: RequestTable) -> None:
        self._table = table
        self._file = (folder / f"rank-{rank}.jsonl").open("wb", buffering=0)  # no line is lost with the process
        self._write(TraceHead(name))
        if model.stage.is_first:
            model.embed_tokens.register_forward_hook(self._on_embedding)
        for layer in model.stage.layers:
            model.layers[layer].register_forward_hook(self._on_layer(layer, model))
        if model.stage.is_last:
            model.lm_head.register_forward_hook(self._on_logits)

    def close(self) -> None:
        self._file.close()

    def _on_embedding(self, module: Any, arguments: tuple[Any, ...], embedded: torch.Tensor) -> None:
        self._note(EMBEDDING, self._rows(arguments[0]), embedded)

    def _on_layer(self, layer: int, model: Stage) -> Any:
        def hook(module: Any, arguments: tuple[Any, ...], states: HiddenStates) -> None:
            self._note(layer, self._rows(arguments[1]), torch.cat(model.ops.joined(states), dim=1))

        return hook

    def _on_logits(self, module: Any, arguments: tuple[Any, ...], logits: torch.Tensor) -> None:
        batch: Batch = arguments[1]
        rows = self._rows(batch)
        self._note(LOGITS, [rows[row] for row in batch.sample_rows.tolist()], logits)

    def _rows(self, batch: Batch) -> list[tuple[int, int]]:
        """The request and the position of each row."""
        slots = batch.decode_slots.tolist()
        slots += [chunk.slot for chunk in batch.prefills.chunks for _ in range(chunk.length)]
        requests = [self._table.rows[slot].request for slot in slots]
        return list(zip(requests, batch.positions.tolist(), strict=True))

    def _note(self, layer: int, rows: list[tuple[int, int]], values: torch.Tensor) -> None:
        digests = (row_digest(value).hex() for value in values.contiguous())
        self._write(TraceLine(layer, [(*row, digest) for row, digest in zip(rows, digests, strict=True)]))

    def _write(self, line: TraceHead | TraceLine) -> None:
        self._file.write(msgspec.json.encode(line) + b"\n")
