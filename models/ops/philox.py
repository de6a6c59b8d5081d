"""Philox-4x32-10, a counter-based random generator (Salmon et al., "Parallel random numbers: as easy as 1, 2, 3", SC
2011).

A draw is a function of seed and position alone: nothing is stored between draws, any number of rows is drawn at once,
and a kernel that computes the same integers makes the same draw.
"""

import torch

_MULTIPLIERS = (0xCD9E8D57, 0xD2511F53)  # of words 2 and 0
_WEYL = (0x9E3779B9, 0xBB67AE85)  # what each round adds to the two words of the key
_ROUNDS = 10
_MASK = 0xFFFFFFFF


def philox(counters: torch.Tensor, keys: torch.Tensor) -> torch.Tensor:
    """counters [S, 4], keys [S, 2] -> [S, 4]: 32-bit words, each in an int64."""
    multipliers, weyl = keys.new_tensor(_MULTIPLIERS), keys.new_tensor(_WEYL)
    c0, c1, c2, c3 = counters.unbind(-1)
    even, odd = torch.stack((c2, c0), -1), torch.stack((c1, c3), -1)
    rounds = torch.arange(_ROUNDS, device=keys.device)[:, None, None]
    for key in (keys + rounds * weyl) & _MASK:
        product = even * multipliers  # modulo 2^64: the low word is exact, and so is the high one once it is masked
        first = (product >> 32).bitwise_xor_(odd).bitwise_xor_(key).bitwise_and_(_MASK)  # words 0 and 2
        even, odd = first.flip(-1), product.bitwise_and_(_MASK)
    return torch.stack((even[:, 1], odd[:, 0], even[:, 0], odd[:, 1]), -1)


def uniform(seeds: torch.Tensor, positions: torch.Tensor) -> torch.Tensor:
    """One number in [0, 1) a row, a multiple of 2^-53: seeds, positions [S] int64 -> [S] float64.

    The seed is the key, the position the first two words of the counter; the other two are free for further draws of a
    position.
    """
    zeros = torch.zeros_like(positions)
    counters = torch.stack((positions & _MASK, (positions >> 32) & _MASK, zeros, zeros), -1)
    words = philox(counters, torch.stack((seeds & _MASK, (seeds >> 32) & _MASK), -1))
    return ((words[:, 0] << 21) + (words[:, 1] >> 11)).double() * 2.0**-53
