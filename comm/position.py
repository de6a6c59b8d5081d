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

    @property
    def previous_rank(self) -> int:
        """The rank of the stage before, at the same tensor rank. The stages are a ring: before the first is the
        last."""
        return (self.rank - self.tp_size) % self.world_size

    @property
    def next_rank(self) -> int:
        """The rank of the stage behind, at the same tensor rank; behind the last is the first."""
        return (self.rank + self.tp_size) % self.world_size

    def __str__(self) -> str:
        return f"rank {self.rank} (stage {self.pp_rank}, tp {self.tp_rank})"


def mesh_position(rank: int, pp_size: int, tp_size: int) -> MeshPosition:
    """Position of a global rank."""
    return MeshPosition(rank // tp_size, pp_size, rank % tp_size, tp_size)


def ranks_of_host(rank: int, ranks_per_host: int) -> range:
    """The ranks on the host of ``rank``. Each host has as many, in the order of ranks."""
    first = rank // ranks_per_host * ranks_per_host
    return range(first, first + ranks_per_host)


def previous_is_elsewhere(position: MeshPosition, ranks_per_host: int) -> bool:
    """Whether the stage before is on another host, so that this rank listens for it on the network."""
    return position.previous_rank not in ranks_of_host(position.rank, ranks_per_host)
