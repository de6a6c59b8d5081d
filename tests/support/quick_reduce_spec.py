"""The quick all-reduce's specification in plain torch: what any rank must get, bit by bit (csrc/quick_reduce).

    result = codec(sum over ranks of codec(x_r)), summed in float32 along ((0+1)+(2+3))+((4+5)+(6+7)), rounded once

One-shot does not send the sum, and does not code it: result = sum over ranks of codec(x_r).
A codec keeps, for each block of 32 elements, the largest magnitude in bfloat16 and one integer an element.
"""

import torch

BLOCK = 32
LARGEST = {"int8": 127, "int6": 31, "int4": 7}  # of a codec's integers
TINY = 2.0**-100  # blocks below become zeros


def round_trip(values: torch.Tensor, codec: str) -> torch.Tensor:
    """What arrives of float32 ``values`` [n]."""
    if codec == "none":
        return values
    blocks = _blocks(values)
    largest = torch.tensor(float(LARGEST[codec]))
    amax = blocks.abs().amax(dim=1, keepdim=True).bfloat16().float()
    amax = torch.where(amax < TINY, 0.0, amax)
    # A tensor in the numerator: number / tensor would multiply by a rounded reciprocal.
    inverse = torch.where(amax == 0, 0.0, torch.div(largest, amax))
    # Ties to even. An integer has no negative zero.
    integers = (blocks * inverse).clamp(-largest, largest).round() + 0.0
    step = amax * torch.div(torch.tensor(1.0), largest)
    return (integers * step).flatten()[: values.numel()]


def expected_sum(parts: list[torch.Tensor], codec: str = "none", algorithm: str = "two-shot") -> torch.Tensor:
    """The sum of one tensor a rank, in their dtype."""
    sums = [round_trip(part.flatten().float(), codec) for part in parts]
    while len(sums) > 1:
        sums = [one + other for one, other in zip(sums[::2], sums[1::2], strict=True)]
    result = round_trip(sums[0], codec) if algorithm == "two-shot" else sums[0]
    return result.to(parts[0].dtype).view_as(parts[0])


def error_bound(parts: list[torch.Tensor], codec: str, algorithm: str = "two-shot") -> torch.Tensor:
    """Bound of |codec's sum - exact sum| for each element, float32, from what codec_quantised.h promises.

    A round trip is off by amax * (1/(2Q) + 2^-8): half a step, and the clamp when the scale was rounded down. In
    two-shot the sum of what arrived goes through one more; its amax is at most that of the exact sum plus the errors so
    far. Rounding to float32 and to the element type comes on top.
    """
    share = 0.0 if codec == "none" else 0.5 / LARGEST[codec] + 2.0**-8
    floats = [part.flatten().float() for part in parts]
    arrived = sum((_amax(part) * share for part in floats), torch.zeros_like(floats[0]))
    exact = torch.stack(floats).double().sum(dim=0).float()
    largest = _amax(exact.abs() + arrived)
    sizes = torch.stack(floats).abs().sum(dim=0)
    rounding = len(parts) * 2.0**-23 * sizes + torch.finfo(parts[0].dtype).eps * largest + len(parts) * TINY
    coded_again = largest * share if algorithm == "two-shot" else 0.0
    return (arrived + coded_again + rounding).view_as(parts[0])


def _blocks(values: torch.Tensor) -> torch.Tensor:
    padded = torch.nn.functional.pad(values, (0, -values.numel() % BLOCK))
    return padded.view(-1, BLOCK)


def _amax(values: torch.Tensor) -> torch.Tensor:
    """Every element's block maximum."""
    largest = _blocks(values).abs().amax(dim=1)
    return largest.repeat_interleave(BLOCK)[: values.numel()]
