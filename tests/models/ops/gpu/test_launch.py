"""The border of every kernel: what is wrong is named before anything runs."""

from typing import Any

import pytest
import torch
import triton
import triton.language as tl

from splitrank.models.ops.gpu.launch import Operand, _likeness, launch
from splitrank.models.ops.gpu.tiles import Tile


@triton.jit
def _double(x, y, COUNT: tl.constexpr, PDL: tl.constexpr):  # type: ignore[no-untyped-def]
    at = tl.program_id(0) * COUNT + tl.arange(0, COUNT)
    tl.store(y + at, 2 * tl.load(x + at))


def double(x: torch.Tensor, y: torch.Tensor, **changes: Any) -> None:
    shape, dtype = changes.get("shape", tuple(x.shape)), changes.get("dtype", torch.float32)
    operands = {"x": Operand(x, shape, dtype, strided=changes.get("strided", False)), "y": Operand(y, shape, dtype)}
    launch(_double, (shape[0],), Tile(num_warps=1), COUNT=shape[1], **operands)


def test_it_runs(device: torch.device) -> None:
    x = torch.randn(3, 16, device=device)
    y = torch.full_like(x, torch.nan)
    double(x, y)
    torch.testing.assert_close(y, 2 * x)


def test_no_rows_are_no_launch(device: torch.device) -> None:
    double(torch.empty(0, 16, device=device), torch.empty(0, 16, device=device))


def test_the_tensor_on_another_device_is_named(device: torch.device) -> None:
    x = torch.zeros(2, 16, device=device)
    with pytest.raises(ValueError, match=rf"^double: y lies on meta, the launch is on {device}$"):
        double(x, torch.zeros(2, 16, device="meta"))


def test_a_tensor_read_in_bulk_is_checked_like_any_other(device: torch.device) -> None:
    x, y = torch.zeros(2, 16, device=device), torch.zeros(2, 16, device="meta")
    block = Operand(y, (2, 16), torch.float32, block=(2, 16))
    with pytest.raises(ValueError, match=rf"^double: y lies on meta, the launch is on {device}$"):
        launch(_double, (2,), Tile(num_warps=1), x=Operand(x, (2, 16), torch.float32), y=block, COUNT=16)
    assert Operand(x, (2, 8), torch.float32, block=(2, 8)).complaint() == "has shape [2, 16], not [2, 8]"


@pytest.mark.parametrize(
    ("make", "changes", "message"),
    [
        (lambda x: x.double(), {}, "x is torch.float64, not torch.float32"),
        (lambda x: x, {"shape": (2, 32)}, r"x has shape \[2, 16\], not \[2, 32\]"),
        (lambda x: x.t().contiguous().t(), {}, r"x is not contiguous: strides \[1, 2\]"),
        (lambda x: x.t().contiguous().t(), {"strided": True}, "x has stride 2 in its last dim"),
    ],
)
def test_what_is_not_as_declared_is_named(
    device: torch.device, make: Any, changes: dict[str, Any], message: str
) -> None:
    x = torch.zeros(2, 16, device=device)
    with pytest.raises(ValueError, match=f"^double: {message}$"):
        double(make(x), x.clone(), **changes)


def test_a_strided_tensor_may_have_gaps_between_rows(device: torch.device) -> None:
    wide = torch.randn(2, 32, device=device)
    assert not Operand(wide[:, :16], (2, 16), torch.float32, strided=True).complaint()
    assert Operand(wide[:, :16], (2, 16), torch.float32).complaint()


ONE_WARP = Tile(1)


def likeness(tensor: torch.Tensor, grid: tuple[int, ...] = (2,), tile: Tile = ONE_WARP, count: Any = 16) -> Any:
    operand = Operand(tensor, tuple(tensor.shape), tensor.dtype)
    return _likeness(_double, grid, tile, {"x": operand, "COUNT": count})


def test_launches_are_alike_only_if_all_that_is_checked_and_compiled_is_equal(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "current_device", lambda: 0)
    x = torch.zeros(64)
    assert likeness(x[:32].view(2, 16)) == likeness(torch.zeros(2, 16))
    one = likeness(x[:32].view(2, 16))
    others = [
        likeness(x[1:33].view(2, 16)),  # its address is not aligned
        likeness(torch.zeros(2, 16, dtype=torch.int32)),
        likeness(torch.zeros(16, 2).t()),
        likeness(torch.zeros(1, 16)),
        likeness(x[:32].view(2, 16), grid=(1,)),
        likeness(x[:32].view(2, 16), tile=Tile(2)),
        likeness(x[:32].view(2, 16), tile=Tile(1, pdl=True)),
        likeness(x[:32].view(2, 16), count=16.0),
    ]
    assert one not in others
    assert len(set(others)) == len(others)
    assert likeness(x[:1], count=x) == likeness(x[:1], count=torch.ones(3))  # nothing of it is declared
    assert not any(isinstance(part, torch.Tensor) for part in likeness(x[:1], count=x))  # it would live for ever
    operand = Operand(x, (64,), torch.float32)
    assert _likeness(_double, (), Tile(1), {"x": operand, "y": 1}) != _likeness(
        _double, (), Tile(1), {"y": 1, "x": operand}
    )
    assert likeness(x[:1], count=True) != likeness(x[:1], count=1)


def test_a_launch_like_an_earlier_one_runs_on_its_own_tensors_and_is_checked(device: torch.device) -> None:
    for value in (1.0, 2.0):
        x = torch.full((3, 16), value, device=device)
        y = torch.zeros_like(x)
        double(x, y)
        assert torch.equal(y, 2 * x)
    with pytest.raises(ValueError, match="y has shape"):
        double(x, torch.zeros(2, 16, device=device), shape=(3, 16))
    with pytest.raises(ValueError, match="y lies on meta"):
        double(x, torch.zeros(3, 16, device="meta"))
