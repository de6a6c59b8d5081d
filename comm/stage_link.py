"""Options of the link between pipeline stages, and the choice by them. No torch, so that the front can refuse.

``device``: hidden states and tokens go from GPU memory to GPU memory (``device_link.py``), and no stage waits for its
host. ``socket``: through the hosts (``pipeline_link.py``).
"""

from dataclasses import dataclass

KINDS = ("auto", "device", "socket")


@dataclass(frozen=True)
class StageLinkOptions:
    """``part_bytes``: of the largest tensor that this rank receives. ``devices``: number of each rank's GPU."""

    kind: str = "socket"
    part_bytes: int = 0
    devices: tuple[int, ...] = ()

    def __post_init__(self) -> None:
        if self.kind not in KINDS:
            raise ValueError(f"stage_link must be one of {', '.join(KINDS)}, not {self.kind!r}")

    def socket_because(self, tp_size: int) -> str:
        """Why this layout's stages are linked by sockets; empty if they are not, or not if GPU memory can be shared."""
        if self.kind == "socket":
            return "--stage-link socket"
        if self.kind == "auto" and tp_size > 1:
            return f"tp {tp_size}: not yet seen on as many GPUs; --stage-link device asks for it"
        if self.kind == "auto" and len(set(self.devices)) < len(self.devices):
            return "stages share a GPU, where one that waits would take the other's time"
        return ""


def refuse_device_link(kind: str, device: str, pp_size: int, num_nodes: int = 1) -> None:
    """``ValueError`` if ``kind`` is ``device`` where no such link can be."""
    if kind != "device":
        return
    if device == "cpu":
        raise ValueError("stage_link device: a CPU's stages are linked by sockets; give --stage-link auto")
    if num_nodes > 1:
        raise ValueError("stage_link device: stages of several hosts are linked by sockets; give --stage-link auto")
    if pp_size == 1:
        raise ValueError("stage_link device: with pp 1 there is no other stage")
