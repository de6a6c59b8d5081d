"""The mesh of ranks: the only creator of process groups and communicators.

Axes: pipeline (stages) x tensor (ranks of a stage); global rank = pp_rank * tp_size + tp_rank.
"""

from datetime import timedelta
from pathlib import Path
from socket import socket

import torch
import torch.distributed as dist
from torch._C._distributed_c10d import FileStore

from splitrank.comm.collectives import Collectives, SingleRank, TorchCollectives
from splitrank.comm.errors import CommunicationError
from splitrank.comm.position import MeshPosition, previous_is_elsewhere, ranks_of_host
from splitrank.comm.quick_collectives import QuickCollectives
from splitrank.comm.quick_reduce import QuickAllReduce
from splitrank.comm.selection import AllReduceOptions, describe, select
from splitrank.comm.stage_link import StageLinkOptions
from splitrank.comm.stage_links import Ends, StageLinks, link_stages, no_links
from splitrank.comm.stage_network import NetworkListener, StageNetwork, link_name
from splitrank.comm.stage_socket import StageListener, connect


class Mesh:
    """This rank's communicators. Construction is collective: every rank of the world makes one at the same time.

    ``rendezvous`` is a file that all ranks of this host can reach and that did not exist before. ``timeout_s`` bounds
    every wait. ``network`` says which ranks are on other hosts; without it, all are on this one.
    ``all_reduce`` chooses the collectives of a stage, for tensors on ``device``; ``report`` is a line that says how.
    ``link`` carries hidden states from stage to stage, ``feedback`` sampled tokens from the last stage to the first;
    ``stage_link`` chooses how, and ``link_report`` says it; ``device_link``: both, if they go from GPU to GPU.
    ``speed_report`` is of a connection to another host.
    """

    def __init__(
        self,
        position: MeshPosition,
        rendezvous: Path,
        timeout_s: float,
        all_reduce: AllReduceOptions | None = None,
        device: torch.device | None = None,
        stage_link: StageLinkOptions | None = None,
        network: StageNetwork | None = None,
    ) -> None:
        self.position = position
        self._network = network or StageNetwork(position.world_size)
        self._host_ranks = ranks_of_host(position.rank, self._network.ranks_per_host)
        self.collectives: Collectives = SingleRank()
        self.report, self._joined = "", False
        self.speed_report = ""
        self._options, self._device = all_reduce or AllReduceOptions(), device or torch.device("cpu")
        listener = self._listen(rendezvous.parent, timeout_s) if position.pp_size > 1 else None
        try:
            if len(self._host_ranks) > 1:
                group = self._join_groups(rendezvous, timeout_s)
                if group is not None:
                    self.collectives, self.report = self._make_collectives(group, timeout_s)
            links = no_links(timeout_s)
            if listener is not None:
                links = self._link_stages(stage_link or StageLinkOptions(), listener, rendezvous.parent, timeout_s)
            self.link, self.feedback = links.forward, links.feedback
            self.device_link, self.link_report = links.on_device, links.report
        except BaseException:
            self._leave_groups()
            raise
        finally:
            if listener is not None:
                listener.close()

    def _listen(self, folder: Path, timeout_s: float) -> StageListener | NetworkListener:
        """Listens for the stage before this one."""
        if previous_is_elsewhere(self.position, self._network.ranks_per_host):
            return NetworkListener(self._network, self.position.rank, timeout_s)
        return StageListener(folder, link_name(self.position.rank))

    def _connect(self, folder: Path, timeout_s: float) -> socket:
        """Connects to the stage behind this one. A rank of this host listens already, since all have joined; on other
        hosts, sockets listen since before any rank was started."""
        following = self.position.next_rank
        if following in self._host_ranks:
            return connect(folder, link_name(following))
        stream, speed = self._network.connect(following, timeout_s)
        self.speed_report = f"{self.position} to rank {following} on another host: {speed}"
        return stream

    def _link_stages(
        self, options: StageLinkOptions, listener: StageListener | NetworkListener, folder: Path, timeout_s: float
    ) -> StageLinks:
        """Reaches both neighbours; then the links."""
        try:
            following = self._connect(folder, timeout_s)
            try:
                previous = listener.accept(timeout_s)
            except CommunicationError:
                following.close()
                raise
            ends = Ends(self.position, self._device, self._host_ranks, previous, following, timeout_s)
            return link_stages(ends, options)
        except CommunicationError as error:
            raise CommunicationError(f"{self.position}: could not link the stages: {error}") from error

    def check(self) -> None:
        """Raises if a collective or a message that was enqueued so far has failed. For steps that have ended."""
        self.collectives.check()
        if self.device_link is not None:
            self.device_link.check()

    def _make_collectives(self, group: dist.ProcessGroup, timeout_s: float) -> tuple[Collectives, str]:
        """The backend that options and measured table choose for this stage, and the line at start about it."""
        rank, size, options = self.position.tp_rank, self.position.tp_size, self._options
        torch_ = TorchCollectives(group, rank, size, timeout_s, tree=self._device.type == "cpu")
        target = "hip" if self._device.type == "cuda" and torch.version.hip else self._device.type
        selection = select(options, size, target)
        if not selection.quick:
            return torch_, describe(options, selection, self.position.pp_rank, 0)
        quick = QuickAllReduce(group, rank, size, timeout_s, self._device)
        line = describe(options, selection, self.position.pp_rank, quick.num_bytes)
        return QuickCollectives(quick, torch_, selection, options.codec), line

    def _join_groups(self, rendezvous: Path, timeout_s: float) -> dist.ProcessGroup | None:
        """The group of this rank's stage; None for a stage of one rank. torch's world are the ranks of this host, to
        which tensor ranks keep."""
        position, timeout, own = self.position, timedelta(seconds=timeout_s), None
        first, num_ranks = self._host_ranks.start, len(self._host_ranks)
        try:
            store = FileStore(str(rendezvous), num_ranks)
            dist.init_process_group(
                "gloo", store=store, rank=position.rank - first, world_size=num_ranks, timeout=timeout
            )
            self._joined = True
            for stage_first in range(0, num_ranks, position.tp_size):
                # new_group is collective over the world: every rank makes the groups of all stages.
                members = list(range(stage_first, stage_first + position.tp_size))
                group = dist.new_group(members, timeout=timeout, backend="gloo") if position.tp_size > 1 else None
                if group is not None and position.rank - first in members:
                    assert not isinstance(group, int)
                    own = group
        except RuntimeError as error:
            raise CommunicationError(
                f"{position}: could not join the other ranks: {str(error).splitlines()[0]}"
            ) from error
        return own

    def close(self) -> None:
        """Leaves the groups; safe to call when peers are gone."""
        self.link.close()
        self.feedback.close()
        self._leave_groups()

    def _leave_groups(self) -> None:
        self.collectives.close()
        if self._joined:
            self._joined = False
            dist.destroy_process_group()
