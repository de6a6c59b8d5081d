"""What hosts compare before any of them loads a weight. A difference is one line that names both hosts and values."""

from pathlib import Path
from typing import Any, TypeVar

import msgspec

from splitrank import __version__
from splitrank.models.checkpoint import weight_files
from splitrank.serving.launch.file_hash import hash_files
from splitrank.serving.protocol.host_messages import HostIdentity
from splitrank.serving.protocol.messages import LaunchSpec

# Each host has its own. Threads change no bit that stages of other hosts could see.
LOCAL_FIELDS = frozenset(
    [
        "run_dir",
        "front_pid",
        "model_dir",
        "threads_per_rank",
        "pin_threads",
        "devices",
        "node_rank",
        "bind",
        "secret_file",
        "join_timeout_s",
        "init_address",
        "engine_address",
        "links",
        "trace_dir",
        "log_level",
        "show_progress",
    ]
)
DECIDED_BY_HOST_0 = ("digests",)  # by its command; the members follow
SMALLEST_FIELDS = ("num_pages", "max_model_len", "max_running_requests")  # follow from each host's memory


def identity_of(spec: LaunchSpec) -> HostIdentity:
    """The identity of this host's program and checkpoint. Reads headers and samples of the files."""
    folder = Path(spec.model_dir)
    checkpoint = "" if spec.load_format == "dummy" else hash_files(weight_files(folder))
    return HostIdentity(__version__, hash_files([folder / "config.json"]), checkpoint)


Compared = TypeVar("Compared", HostIdentity, LaunchSpec)


def find_difference(own_name: str, own: Compared, name: str, other: Compared) -> str | None:
    """One line about the first thing that differs; None if the two hosts fit together."""
    theirs, exempt = msgspec.structs.asdict(other), LOCAL_FIELDS.union(SMALLEST_FIELDS, DECIDED_BY_HOST_0)
    for field, value in msgspec.structs.asdict(own).items():
        if field not in exempt and theirs[field] != value:
            return f"{name} has {field.replace('_', ' ')} {_shown(theirs[field])}, {own_name} has {_shown(value)}"
    return None


def merge(specs: list[LaunchSpec], links: dict[int, str]) -> LaunchSpec:
    """Host 0's spec, with what fits the smallest host and all addresses. ``specs``: host 0's first."""
    smallest = {field: min(getattr(spec, field) for spec in specs) for field in SMALLEST_FIELDS}
    # Each host had checked that its pages hold its longest request; the smallest numbers may be of two hosts.
    smallest["max_model_len"] = min(smallest["max_model_len"], smallest["num_pages"] * specs[0].page_size)
    return msgspec.structs.replace(specs[0], **smallest, links=links)


def localised(spec: LaunchSpec, own: LaunchSpec) -> LaunchSpec:
    """The common spec with a member's own fields; the links are common, too."""
    fields = {field: getattr(own, field) for field in LOCAL_FIELDS if field not in ("links", "trace_dir")}
    return msgspec.structs.replace(spec, **fields)


def _shown(value: Any) -> str:
    return ",".join(map(str, value)) if isinstance(value, tuple) else str(value) or "none"
