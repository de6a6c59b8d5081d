"""The slow check of loaded weights (``--verify-weights``): compares each parameter with the files, read in another way.

It uses neither the weight plan nor the loader. It reads whole tensors by name (one expert of fused ones), and splits
them by heads, halves and columns as the sharding rule says. It needs the memory of one tensor beside the weights.
"""

from collections.abc import Iterator
from math import prod

import torch

from splitrank.models.checkpoint import Checkpoint
from splitrank.models.config import ModelConfig
from splitrank.models.errors import CheckpointError
from splitrank.models.sharding import TensorShard
from splitrank.models.tensor_names import EMBEDDING, HEAD
from splitrank.models.torch_dtype import torch_dtype
from splitrank.models.weight_plan import AuditError

_INTEGERS = {2: torch.int16, 4: torch.int32}
Part = tuple[str, torch.Tensor]  # canonical name of a tensor, and the rows that a rank holds of it


def verify_weights(
    module: torch.nn.Module, config: ModelConfig, shard: TensorShard, checkpoint: Checkpoint, where: str
) -> None:
    """Raises ``AuditError``, one line with ``where`` (the rank), tensor and file, at the first value that differs.

    To be called after ``load_weights`` and before ``prepare``, which packs the weights.
    """
    reference = _Reference(config, shard, checkpoint)
    for name, parameter in module.named_parameters():
        row, rows = 0, parameter.data.flatten(0, -2) if parameter.dim() > 2 else parameter.data
        for tensor, expected in reference.parts(name):
            found = rows[row : row + len(expected)].cpu()
            _compare(f"{where}: parameter {name}", row, found, expected, checkpoint, tensor)
            row += len(expected)
        if row != len(rows):
            raise AuditError(f"{where}: parameter {name} has {len(rows)} rows, the checkpoint gives {row}")


def _compare(
    what: str, row: int, found: torch.Tensor, expected: torch.Tensor, checkpoint: Checkpoint, tensor: str
) -> None:
    """Compares bits, so that a NaN must be the same NaN."""
    entry, expected = checkpoint.tensors[tensor], expected.to(found.dtype)
    if found.shape != expected.shape:
        shapes = f"{list(found.shape)}, tensor {entry.name!r} of {entry.file} gives {list(expected.shape)}"
        raise AuditError(f"{what} holds {shapes} from row {row} on")
    bits = [values.contiguous().view(_INTEGERS[values.element_size()]) for values in (found, expected)]
    if not torch.equal(*bits):
        wrong = (bits[0] != bits[1]).nonzero()
        at = tuple(wrong[0].tolist())
        raise AuditError(
            f"{what} differs from tensor {entry.name!r} of {entry.file} in {len(wrong):,} of {found.numel():,} values: "
            f"at {[row + at[0], *at[1:]]} it holds {float(found[at]):g} instead of {float(expected[at]):g}"
        )


class _Reference:
    """The values that each parameter of a tensor rank must have."""

    def __init__(self, config: ModelConfig, shard: TensorShard, checkpoint: Checkpoint) -> None:
        self.config, self.shard, self.checkpoint = config, shard, checkpoint

    def parts(self, name: str) -> Iterator[Part]:
        """The parts of a parameter from top to bottom."""
        stem, _, leaf = name.removesuffix(".weight").rpartition(".")
        parent = stem.rpartition(".")[2]
        if leaf in ("embed_tokens", "lm_head"):
            tensor = HEAD if leaf == "lm_head" and not self.config.tie_word_embeddings else EMBEDDING
            yield (
                tensor,
                self.read(tensor).tensor_split(self.shard.size)[self.shard.rank],
            )  # the first ranks have one row more
        elif leaf in ("qkv_proj", "in_proj", "conv1d", "A_log", "dt_bias"):
            yield from (self.attention if parent == "self_attn" else self.linear_attention)(stem + ".", leaf)
        elif leaf == "router":
            yield from (
                (stem + gate, self.read(stem + gate)) for gate in (".gate.weight", ".shared_expert_gate.weight")
            )
        elif leaf in ("gate_up_proj", "down_proj"):
            part = self.gate_and_up if leaf == "gate_up_proj" else self.down
            stems = [f"{stem}.{expert}" for expert in range(self.config.num_experts)]
            for one in stems if parent == "experts" else [stem]:
                yield from part(one)
        else:
            whole = self.read(name)
            yield name, self.columns(whole) if leaf in ("o_proj", "out_proj") else whole

    def attention(self, prefix: str, leaf: str) -> Iterator[Part]:
        assert leaf == "qkv_proj"
        kv_heads = self.config.num_key_value_heads
        for letter, num_heads in (("q", self.config.num_attention_heads), ("k", kv_heads), ("v", kv_heads)):
            tensor = f"{prefix}{letter}_proj.weight"
            yield tensor, self.heads(self.read(tensor), num_heads)

    def linear_attention(self, prefix: str, leaf: str) -> Iterator[Part]:
        k_heads, v_heads = self.config.linear_num_key_heads, self.config.linear_num_value_heads
        if leaf in ("A_log", "dt_bias"):
            yield prefix + leaf, self.heads(self.read(prefix + leaf), v_heads)
            return
        tensor = prefix + ("conv1d.weight" if leaf == "conv1d" else "in_proj_qkv.weight")
        sizes = [self.config.key_dim, self.config.key_dim, self.config.value_dim]
        q_k_v = torch.split(self.read(tensor), sizes)
        for part, num_heads in zip(q_k_v, (k_heads, k_heads, v_heads), strict=True):
            yield tensor, self.heads(part.squeeze(1) if leaf == "conv1d" else part, num_heads)
        if leaf == "in_proj":
            for letter in "zba":
                tensor = f"{prefix}in_proj_{letter}.weight"
                yield tensor, self.heads(self.read(tensor), v_heads)

    def gate_and_up(self, stem: str) -> Iterator[Part]:
        """Gate rows, then up rows, of the shared expert or of one routed expert (single or fused)."""
        fused, expert = self.fused(stem, "gate_up_proj")
        if fused in self.checkpoint.tensors:
            for half in self.read(fused, expert).chunk(2):
                yield fused, half.chunk(self.shard.size)[self.shard.rank]
            return
        for letter in ("gate", "up"):
            tensor = f"{stem}.{letter}_proj.weight"
            yield tensor, self.read(tensor).chunk(self.shard.size)[self.shard.rank]

    def down(self, stem: str) -> Iterator[Part]:
        fused, expert = self.fused(stem, "down_proj")
        if fused in self.checkpoint.tensors:
            yield fused, self.columns(self.read(fused, expert))
        else:
            tensor = f"{stem}.down_proj.weight"
            yield tensor, self.columns(self.read(tensor))

    def fused(self, stem: str, leaf: str) -> tuple[str, int | None]:
        """``layers.3.mlp.experts.7`` -> the name of the fused tensor, and 7. The shared expert has none."""
        parent, _, expert = stem.rpartition(".")
        return f"{parent}.{leaf}", int(expert) if expert.isdigit() else None

    def heads(self, weight: torch.Tensor, num_heads: int) -> torch.Tensor:
        """Rows of this rank's heads. With fewer heads than ranks, several ranks have the same head."""
        by_head = weight.reshape(num_heads, -1, *weight.shape[1:])
        copies = max(1, self.shard.size // num_heads)
        return by_head.repeat_interleave(copies, 0).chunk(self.shard.size)[self.shard.rank].flatten(0, 1)

    def columns(self, weight: torch.Tensor) -> torch.Tensor:
        return weight.chunk(self.shard.size, dim=-1)[self.shard.rank]

    def read(self, tensor: str, index: int | None = None) -> torch.Tensor:
        """A whole tensor, or its entry ``index``."""
        entry = self.checkpoint.tensors[tensor]
        shape = entry.shape if index is None else entry.shape[1:]
        num_bytes = prod(shape) * entry.item_bytes
        data = bytearray(num_bytes)
        try:
            with entry.file.open("rb") as file:
                file.seek(entry.offset + (index or 0) * num_bytes)
                count = file.readinto(data)
        except OSError as error:
            raise CheckpointError(f"{entry.file}: tensor {entry.name!r} cannot be read: {error.strerror}") from error
        if count < num_bytes:
            raise CheckpointError(f"{entry.file}: tensor {entry.name!r} ends early: the file was cut while loading")
        return torch.frombuffer(data, dtype=torch_dtype(entry.torch_name)).view(shape)
