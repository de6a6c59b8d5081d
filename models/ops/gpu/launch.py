"""The only way to launch a kernel of this package: checks every tensor first, and names the wrong one.

With ``TRITON_INTERPRET=1``, set before this package is imported, kernels run on CPU tensors in Triton's interpreter.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from math import prod
from typing import Any

import torch
import triton
from triton.tools.tensor_descriptor import TensorDescriptor

from splitrank.models.ops.gpu.tiles import Tile

INTERPRETED = bool(triton.knobs.runtime.interpret)


@dataclass(frozen=True, slots=True)
class Operand:
    """A tensor argument and what the kernel takes for granted about it.

    ``strided``: the last dim is contiguous, the others may have any stride (the kernel gets them as arguments);
    else the whole tensor is contiguous. ``block``: the kernel gets a descriptor of the tensor as rows (its first
    ``row_dims`` dims) and columns, and reads or writes so many rows and columns at a time with the bulk copy engine; a
    row's bytes are a multiple of 16.
    """

    tensor: torch.Tensor
    shape: tuple[int, ...]
    dtype: torch.dtype
    strided: bool = False
    block: tuple[int, int] | None = None
    row_dims: int = 1

    def complaint(self) -> str:
        """What is not as declared, or nothing."""
        tensor = self.tensor
        if tensor.dtype != self.dtype:
            return f"is {tensor.dtype}, not {self.dtype}"
        if tuple(tensor.shape) != self.shape:
            return f"has shape {list(tensor.shape)}, not {list(self.shape)}"
        if self.strided and tensor.stride(-1) != 1:
            return f"has stride {tensor.stride(-1)} in its last dim"
        if not self.strided and not tensor.is_contiguous():
            return f"is not contiguous: strides {list(tensor.stride())}"
        return ""

    def argument(self) -> torch.Tensor | TensorDescriptor:
        """What the kernel gets."""
        if self.block is None:
            return self.tensor
        rows = prod(self.shape[: self.row_dims])
        return TensorDescriptor.from_tensor(self.tensor.view(rows, -1), list(self.block))


@dataclass(frozen=True)
class Call:
    """One launch, checked but for the device."""

    kernel: Any
    grid: tuple[int, ...]
    tile: Tile
    arguments: dict[str, Any]

    @property
    def name(self) -> str:
        return str(self.kernel.fn.__name__).lstrip("_")


def launch(kernel: Any, grid: Sequence[int], tile: Tile, **arguments: Any) -> None:
    """Runs ``kernel`` over ``grid``; tensors are given as ``Operand``, all else as it is.

    Every kernel has a constant ``PDL``: whether it starts before its predecessor has ended, and then waits for it
    (programmatic dependent launch, NVIDIA from Hopper on). It is set here from the tile.

    Raises:
        ValueError: a tensor lies on another device than the launch, or is not as declared. Names kernel and tensor.
    """
    plain = {}
    for name, value in arguments.items():
        if isinstance(value, Operand):
            if complaint := value.complaint():
                raise ValueError(f"{kernel.fn.__name__.lstrip('_')}: {name} {complaint}")
            value = value.argument()
        plain[name] = value
    if all(grid):  # without rows there is nothing to do, and a grid of 0 is an error on a GPU
        run(Call(kernel, tuple(grid), tile, plain))


def run(call: Call) -> None:
    """Launches on the current device; scripts that only compile replace it."""
    device = torch.device("cpu") if INTERPRETED else torch.device("cuda", torch.cuda.current_device())
    for name, value in call.arguments.items():
        tensor = value.base if isinstance(value, TensorDescriptor) else value
        if isinstance(tensor, torch.Tensor) and tensor.device != device:
            raise ValueError(f"{call.name}: {name} lies on {tensor.device}, the launch is on {device}")
    options = options_of(call.tile)
    pdl = call.tile.pdl and not INTERPRETED and _has_pdl(device)
    if pdl:
        options["launch_pdl"] = True
    call.kernel[call.grid](**call.arguments, PDL=pdl, **options)


def options_of(tile: Tile) -> dict[str, Any]:
    """What the compiler is told. Products and sums fuse: the default, until Triton 3.10, and part of a sum's bits."""
    return {"num_warps": tile.num_warps, "num_stages": tile.num_stages, "enable_fp_fusion": True}


@cache
def _has_pdl(device: torch.device) -> bool:
    return torch.version.cuda is not None and torch.cuda.get_device_capability(device) >= (9, 0)
