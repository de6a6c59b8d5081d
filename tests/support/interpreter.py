"""Triton's interpreter, made four times as fast: what it does again for each operation is done once.

Its results stay the same bits. Written against the internals of one version (``scripts/constraints.txt``); any other is
left as it is, and is slower.
"""

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from types import SimpleNamespace
from typing import Any

import numpy as np
import triton
import triton.language as tl
from triton.language.semantic import TritonSemantic
from triton.runtime import interpreter

VERSION = "3.9."


def speed_up_interpreter() -> None:
    """For this process. Does nothing for another version, or where kernels are compiled."""
    if not triton.__version__.startswith(VERSION) or not triton.knobs.runtime.interpret:
        return
    _call_device_functions_without_patching()
    _call_builtins_once()
    _remember_types()
    _broadcast_what_differs()
    # Each integer sum is checked for an overflow of 32 bits, by six more operations on 64. Only sizes that no test here
    # has could overflow; `tests/gpu` has them.
    interpreter.interpreter_builder.options = interpreter.InterpreterOptions(sanitize_overflow=False)


def _call_device_functions_without_patching() -> None:
    """The launch of a kernel patches ``triton.language`` for all functions that it calls, too: by both of its names."""
    patch, both = interpreter._patch_lang, SimpleNamespace(__globals__={"tl": tl, "core": tl.core})

    def call(self: interpreter.InterpretedFunction, *args: object, **kwargs: object) -> object:
        try:
            return self.rewrite()(*args, **kwargs)
        except Exception as error:
            raise interpreter.InterpreterError(repr(error)) from error

    interpreter._patch_lang = lambda kernel: patch(both)
    interpreter.InterpretedFunction.__call__ = call


def _call_builtins_once() -> None:
    """A builtin gets the interpreter's semantic and runs; the original copies its arguments and looks for it again."""

    def patch_attr(obj: Any, name: str, member: Any, builder: Any, scope: Any) -> None:
        builtin = getattr(member, "__wrapped__", member)

        def run(*args: object, **kwargs: object) -> object:
            kwargs["_semantic"] = interpreter.interpreter_semantic
            return builtin(*args, **kwargs)

        scope.set_attr(obj, name, run)

    interpreter._patch_attr = patch_attr


def _remember_types() -> None:
    """Types are values, and their names are unique: what follows from a type is found once for each name."""
    with_element_ty, get_np_dtype = tl.block_type.with_element_ty, interpreter._get_np_dtype
    blocks: dict[tuple[str, str], tl.block_type] = {}
    np_dtypes: dict[str, object] = {}
    shapes: dict[str, tuple[object, object]] = {}
    made: dict[tuple[str, tuple[int, ...]], dict[str, object]] = {}

    def make_block(self: tl.block_type, element_ty: tl.dtype, shape: Iterable[int]) -> None:
        key = element_ty.name, tuple(shape)
        if key not in made:
            make(self, element_ty, shape)
            made[key] = dict(vars(self))
        vars(self).update(made[key])

    def remembered_block(self: tl.block_type, element: tl.dtype) -> tl.block_type:
        key = self.name, element.name
        if key not in blocks:
            blocks[key] = with_element_ty(self, element)
        return blocks[key]

    def remembered_np_dtype(dtype: tl.dtype) -> object:
        name = dtype.scalar.name
        if name not in np_dtypes:
            np_dtypes[name] = get_np_dtype(dtype)
        return np_dtypes[name]

    def make_tensor(self: tl.tensor, handle: object, type: tl.dtype) -> None:
        if type.name not in shapes:
            original(self, handle, type)
            shapes[type.name] = self.shape, self.numel
        self.handle, self.type, self.dtype = handle, type, type.scalar
        self.shape, self.numel = shapes[type.name]

    original, make = tl.tensor.__init__, tl.block_type.__init__
    tl.block_type.__init__ = make_block
    tl.block_type.with_element_ty = remembered_block
    interpreter._get_np_dtype = remembered_np_dtype
    tl.tensor.__init__ = make_tensor


def _broadcast_what_differs() -> None:
    """Two blocks of one shape are there already, and others differ in sizes of 1; the original compares sizes one by
    one, each wrapped, and has a type made for each block."""
    original = TritonSemantic.broadcast_impl_value

    def repeated(value: tl.tensor, shape: tuple[int, ...]) -> tl.tensor:
        data, is_block = value.handle.data, value.type.is_block()
        if is_block and data.shape == shape:
            return value
        data = np.broadcast_to(data, shape) if is_block else np.full(shape, data, data.dtype)
        handle = interpreter.TensorHandle(data, value.handle.dtype.scalar)
        return tl.tensor(handle, tl.block_type(value.type.scalar, list(shape)))

    def broadcast(self: TritonSemantic, left: tl.tensor, right: tl.tensor) -> tuple[tl.tensor, tl.tensor]:
        shapes = [tensor.handle.data.shape for tensor in (left, right) if tensor.type.is_block()]
        if len(shapes) == 1:
            return repeated(left, shapes[0]), repeated(right, shapes[0])
        if shapes[:1] == shapes[1:]:
            return left, right
        pairs = list(zip(*shapes, strict=False))
        if len(shapes[0]) != len(shapes[1]) or any(a != b and 1 not in (a, b) for a, b in pairs):
            return original(self, left, right)
        shape = tuple(max(pair) for pair in pairs)
        return repeated(left, shape), repeated(right, shape)

    TritonSemantic.broadcast_impl_value = broadcast


@contextmanager
def ordered_dot() -> Iterator[None]:
    """Within, each element of ``tl.dot`` is one sum over k in its order, as where it is compiled.

    The interpreter's is numpy's, whose library adds in orders that depend on where in the block an element stands.
    """

    def create_dot(self: Any, a: Any, b: Any, d: Any, input_precision: Any, max_num_imprecise_acc: Any) -> Any:
        total = d.data.copy()
        for k in range(a.data.shape[-1]):
            total += a.data[..., :, k, None].astype(total.dtype) * b.data[..., k, None, :].astype(total.dtype)
        return interpreter.TensorHandle(total, d.dtype.scalar)

    original = interpreter.InterpreterBuilder.create_dot
    interpreter.InterpreterBuilder.create_dot = create_dot
    try:
        yield
    finally:
        interpreter.InterpreterBuilder.create_dot = original
