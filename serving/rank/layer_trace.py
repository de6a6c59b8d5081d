"""Digests of all that a stage's layers hand on, token by token, into a file a rank (``TraceLine``).

For finding where two layouts differ. From outside, by hooks, so that the model knows nothing of it.
"""

from pathlib import Path
from typing import Any

import msgspec
import torch

from splitrank.models.batch import Batch
from splitrank.models.hidden_states import HiddenStates
from splitrank.models.layers.moe import SparseMoe
from splitrank.models.layers.norm import RMSNorm
from splitrank.models.ops.operations import Operations
from splitrank.models.qwen3_5 import Stage
from splitrank.serving.protocol.messages import EMBEDDING, LOGITS, TraceHead, TraceLine
from splitrank.serving.rank.request_table import RequestTable
from splitrank.serving.rank.sampler import row_digest


class LayerTrace:
    """Watches ``model``, and writes a file of its rank in ``folder``, until ``close``."""

    def __init__(self, folder: Path, name: str, rank: int, model: Stage, table: RequestTable) -> None:
        self._table = table
        self._file = (folder / f"rank-{rank}.jsonl").open("wb", buffering=0)  # no line is lost with the process
        self._write(TraceHead(name))
        if model.stage.is_first:
            model.embed_tokens.register_forward_hook(self._on_embedding)
        for layer in model.stage.layers:
            model.layers[layer].register_forward_hook(self._on_layer(layer, model.ops))
        self._watch_mixers(model)
        if model.stage.is_last:
            model.lm_head.register_forward_hook(self._on_logits)

    def close(self) -> None:
        self._file.close()

    def _on_embedding(self, module: Any, arguments: tuple[Any, ...], embedded: torch.Tensor) -> None:
        self._note(EMBEDDING, 0, self._rows(arguments[0]), embedded)

    def _on_layer(self, layer: int, ops: Operations) -> Any:
        def hook(module: Any, arguments: tuple[Any, ...], states: HiddenStates) -> None:
            self._note(layer, 1, self._rows(arguments[1]), torch.cat(ops.joined(states), dim=1))

        return hook

    def _watch_mixers(self, model: Stage) -> None:
        """What a mixer's all-reduce has given goes to the experts, which are a verb and no module."""
        numbers = {model.layers[layer].mlp: layer for layer in model.stage.layers}
        ops, experts = model.ops, model.ops.experts

        def watched(states: HiddenStates, norm: RMSNorm, layer: SparseMoe, batch: Batch) -> HiddenStates:
            self._note(numbers[layer], 0, self._rows(batch), torch.cat(ops.joined(states), dim=1))
            return experts(states, norm, layer, batch)

        ops.experts = watched  # type: ignore[method-assign]

    def _on_logits(self, module: Any, arguments: tuple[Any, ...], logits: torch.Tensor) -> None:
        batch: Batch = arguments[1]
        rows = self._rows(batch)
        self._note(LOGITS, 0, [rows[row] for row in batch.sample_rows.tolist()], logits)

    def _rows(self, batch: Batch) -> list[tuple[int, int]]:
        """The request and the position of each row."""
        slots = batch.decode_slots.tolist()
        slots += [chunk.slot for chunk in batch.prefills.chunks for _ in range(chunk.length)]
        requests = [self._table.rows[slot].request for slot in slots]
        return list(zip(requests, batch.positions.tolist(), strict=True))

    def _note(self, layer: int, half: int, rows: list[tuple[int, int]], values: torch.Tensor) -> None:
        digests = (row_digest(value).hex() for value in values.contiguous())
        self._write(TraceLine(layer, half, [(*row, digest) for row, digest in zip(rows, digests, strict=True)]))

    def _write(self, line: TraceHead | TraceLine) -> None:
        self._file.write(msgspec.json.encode(line) + b"\n")
