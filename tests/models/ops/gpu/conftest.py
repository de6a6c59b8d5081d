"""The kernels run on the GPU where there is one, else interpreted on CPU tensors (``tests/conftest.py``)."""

import pytest
import torch


@pytest.fixture(scope="session")
def device() -> torch.device:
    return torch.device("cuda", torch.cuda.current_device()) if torch.cuda.is_available() else torch.device("cpu")
