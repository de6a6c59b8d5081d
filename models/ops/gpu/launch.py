"""The only way to launch a kernel of this package: checks every tensor first, and names the wrong one.

With ``TRITON_INTERPRET=1``, set before this package is imported, kernels run on CPU tensors in Triton's interpreter.
"""

import inspect
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import cache
from math import prod
from operator import itemgetter
from typing import Any, NamedTuple

import torch
import triton
from triton.backends.compiler import GPUTarget
from triton.runtime import driver
from triton.tools.tensor_descriptor import TensorDescriptor

from splitrank.models.ops.gpu.tiles import Tile

INTERPRETED = bool(triton.knobs.runtime.interpret)
# What Triton's own dispatch of a launch costs the host (60 us on an H200's host) is saved where the compiled kernel of
# a variant is known. ROCm's compiler also asks for the sizes of tensors, which ``Call.variant`` does not tell.
_FINDS_BY_VARIANT = torch.version.hip is None


class Operand(NamedTuple):
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
        if tensor.shape != self.shape:
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


class Call(NamedTuple):
    """One launch, checked but for the device."""

    kernel: Any
    grid: tuple[int, ...]
    tile: Tile
    arguments: dict[str, Any]

    @property
    def name(self) -> str:
        return str(self.kernel.fn.__name__).lstrip("_")

    @property
    def variant(self) -> tuple[Any, ...]:
        """Equal for two launches only if they run the same machine code: at least as fine as Triton's specialisation.

        Constants; types; whether a number is 1, 16 divides it or it needs 64 bits; whether an address is aligned.
        """
        tile, constants, alike = self.tile, _constants(self.kernel.fn), _unspecialised(self.kernel)
        parts: list[Any] = [self.kernel.fn, tile.num_warps, tile.num_stages, tile.pdl, tile.exact]
        for name, value in self.arguments.items():
            parts.append(name)
            if isinstance(value, torch.Tensor):
                parts += value.dtype, value.data_ptr() % 16 == 0
            elif isinstance(value, TensorDescriptor):
                parts += value.base.dtype, *value.block_shape
            elif name in constants or type(value) is not int:
                parts += type(value), value if name in constants else None
            else:
                parts += name not in alike and (value == 1, value % 16 == 0), value.bit_length() > 31
        return tuple(parts)


@cache
def _constants(function: Callable[..., None]) -> frozenset[str]:
    """The arguments that are part of the code."""
    parameters = inspect.signature(function).parameters.values()
    return frozenset(one.name for one in parameters if "constexpr" in str(one.annotation))


def _unspecialised(kernel: Any) -> Sequence[str]:
    """The numbers for any value of which there is one code."""
    names = kernel.kwargs["do_not_specialize"] if INTERPRETED else kernel.do_not_specialize
    return names or ()


def launch(kernel: Any, grid: Sequence[int], tile: Tile, **arguments: Any) -> None:
    """Runs ``kernel`` over ``grid``; tensors are given as ``Operand``, all else as it is.

    Every kernel has a constant ``PDL``: whether it starts before its predecessor has ended, and then waits for it
    (programmatic dependent launch, NVIDIA from Hopper on). It is set here from the tile.

    Raises:
        ValueError: a tensor lies on another device than the launch, or is not as declared. Names kernel and tensor.
    """
    known = None
    if _FINDS_BY_VARIANT and not INTERPRETED and _noted is None:
        known = _likeness(kernel, grid, tile, arguments)
        if (runner := _runners.get(known)) is not None:
            runner(arguments)
            return
    plain = {}
    for name, value in arguments.items():
        if isinstance(value, Operand):
            if complaint := value.complaint():
                raise ValueError(f"{kernel.fn.__name__.lstrip('_')}: {name} {complaint}")
            value = value.argument()
        plain[name] = value
    if not all(grid):  # without rows there is nothing to do, and a grid of 0 is an error on a GPU
        return
    call = Call(kernel, tuple(grid), tile, plain)
    if _noted is not None:
        _noted.append(call)
    else:
        _run(call, arguments, known)


def _run(call: Call, arguments: dict[str, Any], known: tuple[Any, ...] | None) -> None:
    """Launches on the current device, and remembers how, for launches that are like this one (``known``)."""
    device = torch.device("cpu") if INTERPRETED else _device(torch.cuda.current_device())
    for name, value in call.arguments.items():
        tensor = value.base if isinstance(value, TensorDescriptor) else value
        if isinstance(tensor, torch.Tensor) and tensor.device != device:
            raise ValueError(f"{call.name}: {name} lies on {tensor.device}, the launch is on {device}")
    if known is None:
        call.kernel[call.grid](**call.arguments, **_options(call))
        return
    key = call.variant
    if (compiled := _compiled.get(key)) is None:
        compiled = _compiled[key] = _warm_up(call)
    if len(_runners) >= _MAX_RUNNERS:
        _runners.clear()
    pdl = call.tile.pdl and _has_pdl()
    runner = _runners[known] = _Runner(compiled, call, pdl)
    runner(arguments)


def _likeness(kernel: Any, grid: Sequence[int], tile: Tile, arguments: dict[str, Any]) -> tuple[Any, ...]:
    """Equal for two launches only if all that is checked is equal, and so is the machine code."""
    options = tile.num_warps, tile.num_stages, tile.pdl, tile.exact
    parts = [kernel.fn, *options, *grid, torch.cuda.current_device(), *arguments]
    for value in arguments.values():
        if type(value) is Operand:
            tensor = value[0]
            parts += tensor.dtype, tensor.shape, tensor.stride(), tensor.get_device(), tensor.data_ptr() % 16
            parts += value[1:]
        elif isinstance(value, torch.Tensor):  # of which nothing is declared
            parts += value.dtype, value.get_device(), value.data_ptr() % 16
        else:
            parts += type(value), value
    return tuple(parts)


class _Rows(NamedTuple):
    """What Triton's launcher reads of a ``TensorDescriptor``, which checks itself whenever one is made."""

    base: torch.Tensor
    shape: tuple[int, ...]
    strides: tuple[int, ...]
    block_shape: list[int]
    padding: str = "zero"
    round_f32_to_tf32: bool = False


class _Runner:
    """A compiled kernel on its grid. Called with arguments of which those are alike that it was made from."""

    def __init__(self, compiled: Any, call: Call, pdl: bool) -> None:
        names = [*call.arguments, "PDL"]
        self._launch, self._pdl = compiled[(*call.grid, 1, 1)[:3]], pdl
        self._in_order = itemgetter(*(names.index(name) for name in call.kernel.arg_names))
        self._rows = [
            (at, _Rows(value.base, value.shape, value.strides, value.block_shape)[1:])
            for at, value in enumerate(call.arguments.values())
            if isinstance(value, TensorDescriptor)
        ]

    def __call__(self, arguments: dict[str, Any]) -> None:
        values = [value[0] if type(value) is Operand else value for value in arguments.values()]
        for at, rest in self._rows:
            values[at] = _Rows(values[at], *rest)
        self._launch(*self._in_order((*values, self._pdl)))


_noted: list[Call] | None = None  # where launches are noted instead of made
_compiled: dict[tuple[Any, ...], Any] = {}  # by variant, for the process's one device
# By likeness. A step's launches repeat from layer to layer: what was checked and found for the first serves the others.
_runners: dict[tuple[Any, ...], _Runner] = {}
_MAX_RUNNERS = 16384  # lengths of steps vary without end


def compile_ahead(call: Call) -> None:
    """Compiles a launch into Triton's cache on disk, and launches nothing: for tensors of the meta device as well.

    With Triton's launcher of its signature, which is compiled when a kernel is first launched up to Triton 3.6.
    """
    compiled = _warm_up(call)
    driver.active.launcher_cls(compiled.src, compiled.metadata)


def gpu_target() -> GPUTarget:
    """What kernels are compiled for: kind and instruction set of the process's GPU."""
    target: GPUTarget = driver.active.get_current_target()
    return target


def compile_only(target: GPUTarget) -> None:
    """Has Triton take ``target`` for this process's GPU, and open none: a context takes half a GB of the card."""
    active = driver.active
    active.get_current_target = lambda: target
    active.get_current_device = lambda: 0
    active.get_current_stream = lambda device: 0


@contextmanager
def noted_launches() -> Iterator[list[Call]]:
    """Within, launches are noted in their order and not made; tensors may be of the meta device."""
    global _noted
    outer, calls = _noted, list[Call]()
    _noted = calls
    try:
        yield calls
    finally:
        _noted = outer


def options_of(tile: Tile) -> dict[str, Any]:
    """What the compiler is told. Products and sums fuse, unless the tile is exact: the default, until Triton 3.10, and
    part of a sum's bits."""
    return {"num_warps": tile.num_warps, "num_stages": tile.num_stages, "enable_fp_fusion": not tile.exact}


def _warm_up(call: Call) -> Any:
    return call.kernel.warmup(**call.arguments, grid=call.grid, **_options(call))


def _options(call: Call) -> dict[str, Any]:
    pdl = call.tile.pdl and not INTERPRETED and _has_pdl()
    return {"PDL": pdl, **options_of(call.tile), **({"launch_pdl": True} if pdl else {})}


@cache
def _device(number: int) -> torch.device:
    return torch.device("cuda", number)


@cache
def _has_pdl() -> bool:
    """Of the process's one device."""
    target = gpu_target()
    return target.backend == "cuda" and int(target.arch) >= 90
