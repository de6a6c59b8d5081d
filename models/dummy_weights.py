"""``--load-format dummy``: weights that nobody trained, for measuring without a checkpoint.

Each is a function of its tensor's name and its place there, so that every layout and device makes the same model.
"""

import hashlib
from collections.abc import Callable, Iterator
from math import sqrt

import torch

from splitrank.models.config import ModelConfig
from splitrank.models.tensor_names import dense_shapes, expert_shapes, fused_expert_name
from splitrank.models.weight_plan import Box, Runs, WeightPlan, runs_of

# Of a product's weight, so that sums of K terms stay near the size of one; of a vector (norms, gates).
_PRODUCT, _VECTOR = 1.2, 0.1
_ELEMENTS_AT_ONCE = 2**24  # bounds what the fill needs beside the weights: some 8-byte integers an element
# Two odd constants of SplitMix64 (Steele, Lea, Flood, "Fast splittable pseudorandom number generators", 2014), as
# signed 64-bit integers.
_STEP, _MIX = 0x9E3779B97F4A7C15 - 2**64, 0xBF58476D1CE4E5B9 - 2**64


def fill_dummy(
    module: torch.nn.Module,
    plan: WeightPlan,
    config: ModelConfig,
    on_progress: Callable[[int], object] = lambda num_bytes: None,
) -> int:
    """Fills every parameter of ``plan``; returns the bytes written. ``on_progress`` gets the bytes of each piece."""
    parameters, shapes = dict(module.named_parameters()), tensor_shapes(config)
    bytes_written = 0
    for planned in plan.parameters:
        parameter = parameters[planned.name].data
        for piece in planned.pieces:
            shape, target = shapes[piece.tensor], parameter[tuple(slice(*bounds) for bounds in piece.target)]
            for rows, box in _parts(target, piece.source):
                values = dummy_values(piece.tensor, shape, runs_of(shape, box), parameter.device)
                rows.copy_(values.view(rows.shape))
                bytes_written += rows.nbytes
                on_progress(rows.nbytes)
    return bytes_written


def _parts(target: torch.Tensor, source: Box) -> Iterator[tuple[torch.Tensor, Box]]:
    """A piece, some indices of its first dimension at a time, which target and source have in common."""
    (start, stop), *rest = source
    step = max(1, _ELEMENTS_AT_ONCE // max(1, target[0].numel()))
    for first in range(0, stop - start, step):
        last = min(first + step, stop - start)
        yield target[first:last], ((start + first, start + last), *rest)


def dummy_values(name: str, shape: tuple[int, ...], runs: Runs, device: torch.device) -> torch.Tensor:
    """Some runs of the elements of tensor ``name`` of ``shape`` -> [runs, their length] float32.

    Uniform around 0; around 1 for DeltaNet's norm, which is not zero-centred.
    """
    seed = int.from_bytes(hashlib.blake2b(name.encode(), digest_size=8).digest(), "little", signed=True)
    begins = torch.arange(runs.count, device=device)[:, None] * runs.stride + runs.first
    bits = (begins + torch.arange(runs.length, device=device)) * _STEP + seed
    bits = (bits ^ (bits >> 32)) * _MIX
    unit = (bits >> 40).float() * 2.0**-23  # the highest 24 bits, a number in [-1, 1)
    amplitude = _PRODUCT / sqrt(shape[-1]) if len(shape) > 1 else _VECTOR
    return unit * amplitude + float(name.endswith("linear_attn.norm.weight"))


def tensor_shapes(config: ModelConfig) -> dict[str, tuple[int, ...]]:
    """Every tensor of a checkpoint with fused experts, by canonical name."""
    shapes, of_experts = dict(dense_shapes(config)), expert_shapes(config)
    for layer in range(config.num_hidden_layers):
        for projection in ("gate_up_proj", "down_proj"):
            shapes[fused_expert_name(layer, projection)] = of_experts[projection]
    return shapes
