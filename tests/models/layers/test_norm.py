"""The norms against their formula in float64; 2^-22 leaves four float32 roundings."""

import torch

from splitrank.models.layers.norm import GatedRMSNorm, RMSNorm
from splitrank.models.ops import reference
from splitrank.models.ops.cpu.norm import gated_rms_norm, rms_norm
from splitrank.models.ops.cpu.operations import CpuOperations

BOUND = 2.0**-22


def test_zero_centred_norm_scales_by_one_plus_weight() -> None:
    x, norm, ops = torch.randn(3, 2, 12), RMSNorm(12, 1e-3, torch.float32, CpuOperations()), CpuOperations()
    norm.weight.data.normal_()
    norm.prepare(ops)
    expected = reference.rms_norm(x.double(), 1 + norm.weight.double(), 1e-3)
    torch.testing.assert_close(rms_norm(x, norm.scale, norm.eps).double(), expected, atol=BOUND, rtol=4 * BOUND)


def test_gated_norm_scales_by_weight_and_silu_of_the_gate() -> None:
    x, gate, norm = torch.randn(3, 2, 12), torch.randn(3, 2, 12), GatedRMSNorm(12, 1e-3, CpuOperations())
    norm.weight.data.normal_()
    expected = reference.rms_norm(x.double(), norm.weight.double(), 1e-3) * reference.silu(gate.double())
    torch.testing.assert_close(
        gated_rms_norm(x, gate, norm.weight, norm.eps).double(), expected, atol=2 * BOUND, rtol=4 * BOUND
    )
