"""The stored form of weights on a GPU: views and orders of rows that let a kernel read once what it needs together."""

import torch


def interleave_gate_up(gate_up: torch.Tensor) -> torch.Tensor:
    """[..., 2I, H], gate rows first -> the same shape: row 2i is gate i, row 2i + 1 is up i.

    One wide product then has both halves of a pair in one thread (prefill), and a block's rows are one run of memory.
    """
    inner = gate_up.shape[-2] // 2
    gate, up = gate_up.split(inner, dim=-2)
    return torch.stack((gate, up), dim=-2).flatten(-3, -2)


def pack_router(router: torch.Tensor, shared_gate_up: torch.Tensor) -> torch.Tensor:
    """router [E + 1, H] (the last row gates the shared expert), shared_gate_up [2I, H] -> [N, H].

    Rows: router, gate rows, up rows, then zeros up to a multiple of 16, which keeps loads of the products wide.
    """
    rows = router.shape[0] + shared_gate_up.shape[0]
    padding = router.new_zeros(-rows % 16, router.shape[1])
    return torch.cat((router, shared_gate_up, padding))
