"""Makes the links between neighbouring stages: the kind that options and layout choose, or sockets with the reason."""

from dataclasses import dataclass
from socket import socket

import torch

from splitrank.comm.device_link import DeviceLink
from splitrank.comm.errors import CommunicationError
from splitrank.comm.group_link import GroupLink
from splitrank.comm.pair_group import backend_name, missing_because
from splitrank.comm.pipeline_link import PipelineLink
from splitrank.comm.position import MeshPosition
from splitrank.comm.ring_vote import first_objection
from splitrank.comm.stage_link import StageLinkOptions


@dataclass(frozen=True)
class StageLinks:
    """``forward`` carries hidden states from stage to stage, ``feedback`` sampled tokens from the last to the first.
    ``on_device``: both, if they go from GPU to GPU. ``report``: how stages are linked, empty on a CPU."""

    forward: DeviceLink | GroupLink | PipelineLink
    feedback: DeviceLink | GroupLink | PipelineLink
    on_device: DeviceLink | GroupLink | None = None
    report: str = ""


@dataclass(frozen=True)
class Ends:
    """What a rank's links are made of: its streams from the stage before and to the one behind, and the device of its
    tensors. ``host_ranks``: the ranks of this host."""

    position: MeshPosition
    device: torch.device
    host_ranks: range
    previous: socket
    following: socket
    timeout_s: float

    @property
    def max_ahead(self) -> int:
        """Steps in flight."""
        return self.position.pp_size + 1

    def close(self) -> None:
        for stream in (self.previous, self.following):
            stream.close()


def no_links(timeout_s: float) -> StageLinks:
    """The links of a layout with one stage: they are never used."""
    link = PipelineLink(0, 1, None, None, 1, timeout_s)
    return StageLinks(link, link)


def link_stages(ends: Ends, options: StageLinkOptions) -> StageLinks:
    """Collective over all ranks. ``CommunicationError`` if the link that was asked for cannot be made; then the streams
    are closed, and the neighbours do not wait for this rank."""
    try:
        return _link(ends, options)
    except BaseException:
        ends.close()
        raise


def _link(ends: Ends, options: StageLinkOptions) -> StageLinks:
    kind, reason = options.choose(ends.device.type, ends.position.tp_size, ends.host_ranks, ends.position.world_size)
    if kind == "nccl":
        reason = _objection_to_nccl(ends, options)
        if not reason:
            return _by_groups(ends)
    elif kind == "device":
        try:
            return _by_device_memory(ends, options)
        except CommunicationError as error:
            reason = str(error)
    if options.kind == kind and kind != "socket":
        raise CommunicationError(f"stage_link {kind}: {reason}")
    return _by_streams(ends, "" if ends.device.type == "cpu" else f"stages linked by sockets ({reason})")


def _objection_to_nccl(ends: Ends, options: StageLinkOptions) -> str:
    """Why a stage of the ring cannot use NCCL; empty if all can. All tensor ranks of a host have the same reason."""
    own = missing_because(ends.device)
    if ends.device.type == "cuda" and options.shares_gpus(ends.host_ranks):
        own = own or "stages share a GPU, which NCCL does not allow"
    own = f"{ends.position}: {own}" if own else ""
    return first_objection(ends.previous, ends.following, ends.position.pp_rank == 0, own, ends.timeout_s)


def _by_groups(ends: Ends) -> StageLinks:
    """An error where NCCL cannot join: sockets instead would need all ranks to agree that it could not."""
    link = GroupLink(ends.position, ends.device, ends.previous, ends.following, ends.max_ahead, ends.timeout_s)
    return StageLinks(link, link, link, f"stages linked by {backend_name(ends.device)}")


def _by_device_memory(ends: Ends, options: StageLinkOptions) -> StageLinks:
    position = ends.position
    link = DeviceLink(None, position, ends.device, ends.timeout_s, options.part_bytes, ends.max_ahead)
    ends.close()
    mib = link.num_bytes / 2**20
    where = f"{mib:.1f} MiB of stage {position.pp_rank}, {ends.max_ahead} places"
    return StageLinks(link, link, link, f"stages linked by device memory ({where})")


def _by_streams(ends: Ends, report: str) -> StageLinks:
    """One link forward, whose ring of streams is open between the last stage and the first, and one for that gap."""
    stage, num_stages = ends.position.pp_rank, ends.position.pp_size
    is_first, is_last = stage == 0, stage == num_stages - 1

    def link(previous: socket | None, following: socket | None) -> PipelineLink:
        return PipelineLink(stage, num_stages, previous, following, ends.max_ahead, ends.timeout_s)

    forward = link(None if is_first else ends.previous, None if is_last else ends.following)
    feedback = link(ends.previous if is_first else None, ends.following if is_last else None)
    return StageLinks(forward, feedback, report=report)
