"""Messages between the fronts of several hosts: host 0 has the engine, the others, its members, run ranks for it.

member  --Join, Ended, StopAsked-->  host 0  --Start, End-->  every member;  Beat and Failed both ways
"""

import msgspec

from splitrank.serving.protocol.messages import LaunchSpec


class HostIdentity(msgspec.Struct, frozen=True):
    """What must be the same on all hosts, beside the options."""

    splitrank_version: str
    config_hash: str  # of config.json
    checkpoint_hash: str  # of the weight files' names, sizes, headers and samples of their data; "" without them


class Join(msgspec.Struct, frozen=True, tag=True):
    """What a member has found out for itself. Host 0 compares it with its own."""

    host_name: str
    node_rank: int
    identity: HostIdentity
    spec: bytes  # an encoded LaunchSpec: only one of the same version can be read
    links: dict[int, str]  # host:port where its ranks listen for stages of other hosts


class Start(msgspec.Struct, frozen=True, tag=True):
    """All hosts have joined. The member takes over all but what is its own (``host_checks.LOCAL_FIELDS``)."""

    spec: LaunchSpec


class End(msgspec.Struct, frozen=True, tag=True):
    """The engine ends in order, and has told the ranks."""


class Ended(msgspec.Struct, frozen=True, tag=True):
    """The member's ranks have ended in order."""


class StopAsked(msgspec.Struct, frozen=True, tag=True):
    """The member was asked to stop (SIGTERM), and asks host 0 to."""


class Failed(msgspec.Struct, frozen=True, tag=True):
    reason: str  # one line


class Beat(msgspec.Struct, frozen=True, tag=True):
    """The sender is alive and can be heard."""


HostMessage = Join | Start | End | Ended | StopAsked | Failed | Beat
