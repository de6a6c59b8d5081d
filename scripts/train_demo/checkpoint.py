"""What a run needs to go on: weights, optimizer, where the data stands. Replaced in one move."""

from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch


@dataclass
class Progress:
    """``block`` and ``offset``: the batch that comes next. ``seconds`` spent training, evaluations included."""

    step: int = 0
    num_tokens: int = 0
    seconds: float = 0.0
    block: int = 0
    offset: int = 0


def save(path: Path, model: torch.nn.Module, optimizer: torch.optim.Optimizer, progress: Progress) -> None:
    state = {"model": model.state_dict(), "optimizer": optimizer.state_dict(), "progress": asdict(progress)}
    unfinished = path.with_suffix(".unfinished")
    torch.save(state, unfinished)
    unfinished.replace(path)


def load(path: Path, model: torch.nn.Module, optimizer: torch.optim.Optimizer | None, device: str) -> Progress:
    state: dict[str, Any] = torch.load(path, map_location=device, weights_only=True)
    model.load_state_dict(state["model"])
    if optimizer:
        optimizer.load_state_dict(state["optimizer"])
    return Progress(**state["progress"])
