"""Options of the link between pipeline stages, and the choice by them. No torch, so that the front can refuse.

``device``: hidden states and tokens go from GPU memory to GPU memory of one host (``device_link.py``), and no stage
waits for its host. ``nccl``: between GPUs of different hosts (``group_link.py``). ``socket``: through the hosts' memory
(``pipeline_link.py``).
"""

from dataclasses import dataclass

KINDS = ("auto", "device", "nccl", "socket")
_ON_A_GPU = ("device", "nccl")


@dataclass(frozen=True)
class StageLinkOptions:
    """``part_bytes``: of the largest tensor that this rank receives. ``devices``: number of each rank's GPU."""

    kind: str = "socket"
    part_bytes: int = 0
    devices: tuple[int, ...] = ()

    def __post_init__(self) -> None:
        if self.kind not in KINDS:
            raise ValueError(f"stage_link must be one of {', '.join(KINDS)}, not {self.kind!r}")

    def choose(self, device: str, tp_size: int, host_ranks: range, world_size: int) -> tuple[str, str]:
        """The kind of link of this layout, and why not a faster one. A rank of ``host_ranks`` is asked, with tensors on
        ``device``. Whether the link can be made shows later."""
        if self.kind == "socket":
            return "socket", "--stage-link socket"
        if self.kind in _ON_A_GPU:
            return self.kind, ""
        if device == "cpu":
            return "socket", "stages on a CPU"
        fastest = "device" if len(host_ranks) == world_size else "nccl"
        if tp_size > 1:
            return "socket", f"tp {tp_size}: not yet seen on as many GPUs; --stage-link {fastest} asks for it"
        if fastest == "device" and self.shares_gpus(host_ranks):
            return "socket", "stages share a GPU, where one that waits would take the other's time"
        return fastest, ""

    def shares_gpus(self, host_ranks: range) -> bool:
        """Whether two ranks of this host have the same GPU."""
        own = self.devices[host_ranks.start : host_ranks.stop]
        return len(set(own)) < len(own)


def refuse_stage_link(kind: str, device: str, pp_size: int, num_nodes: int = 1) -> None:
    """``ValueError`` if ``kind`` is a link of GPUs where no such link can be."""
    if kind not in _ON_A_GPU:
        return
    if device == "cpu":
        raise ValueError(f"stage_link {kind}: a CPU's stages are linked by sockets; give --stage-link auto")
    if num_nodes > 1 and kind == "device":
        raise ValueError("stage_link device: stages of several hosts share no memory; give --stage-link auto or nccl")
    if pp_size == 1:
        raise ValueError(f"stage_link {kind}: with pp 1 there is no other stage")
