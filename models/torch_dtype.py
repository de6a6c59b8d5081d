"""torch's dtype of a row in the table of dtypes."""

import torch

from splitrank.models.dtypes import DTYPES


def torch_dtype(name: str) -> torch.dtype:
    """The dtype of a name in ``DTYPES``."""
    dtype: torch.dtype = getattr(torch, DTYPES[name].name)
    return dtype
