"""The activations that go from layer to layer, and from stage to stage."""

from typing import NamedTuple

import torch


class HiddenStates(NamedTuple):
    """``hidden`` and ``residual``, both [tokens, hidden_size]; the next norm adds them.

    A stage sends them separately, not added, so that the next stage rounds their sum as a single stage would.
    """

    hidden: torch.Tensor
    residual: torch.Tensor

    def first_rows(self, rows: int) -> "HiddenStates":
        """Views of the first ``rows`` tokens."""
        return HiddenStates(*(part[:rows] for part in self))
