"""A rank's position in the mesh, and its name in messages. No torch, since the engine names ranks, too."""

from dataclasses import dataclass


@dataclass(frozen=True)
class MeshPosition:
    """Axes: pipeline (stages) x tensor (ranks of a stage). ``str`` of it is the rank's name."""

    pp_rank: int
    pp_size: int
    tp_rank: int
    tp_size: int

    @property
    def rank(self) -> int:
        return self.pp_rank * self.tp_size + self.tp_rank

    @property
    def world_size(self) -> int:
        return self.pp_size * self.tp_size

    def __str__(self) -> str:
        return f"rank {self.rank} (stage {self.pp_rank}, tp {self.tp_rank})"


def mesh_position(rank: int, pp_size: int, tp_size: int) -> MeshPosition:
    """Position of a global rank."""
    return MeshPosition(rank // tp_size, pp_size, rank % tp_size, tp_size)
