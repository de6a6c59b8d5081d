"""From the table of dtypes to torch's."""

import torch

from splitrank.models.dtypes import DTYPES


def torch_dtype(name: str) -> torch.dtype:
    """torch's dtype of a name in ``DTYPES``."""
    dtype: torch.dtype = getattr(torch, DTYPES[name].name)
    return dtype
