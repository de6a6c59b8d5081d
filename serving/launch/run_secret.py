"""The hosts' secret in a run folder (0700), from where engine and ranks read it, and what is made of it."""

import os
from pathlib import Path

from splitrank.comm.stage_network import StageNetwork
from splitrank.serving.protocol.messages import LaunchSpec

SECRET_FILE = "secret"


def write_secret(run_dir: str, secret: bytes) -> None:
    descriptor = os.open(Path(run_dir, SECRET_FILE), os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o600)
    with open(descriptor, "wb") as file:
        file.write(secret)


def read_secret(spec: LaunchSpec) -> bytes:
    """Empty if there is but one host."""
    return Path(spec.run_dir, SECRET_FILE).read_bytes() if spec.num_nodes > 1 else b""


def stage_network(spec: LaunchSpec, link_fd: int | None) -> StageNetwork | None:
    """How a rank reaches the ranks of other hosts; None if there are none."""
    if spec.num_nodes == 1:
        return None
    addresses = {rank: split_address(address) for rank, address in spec.links.items()}
    return StageNetwork(spec.ranks_per_node, addresses, read_secret(spec), link_fd)


def split_address(text: str) -> tuple[str, int]:
    """Host and port of ``host:port`` or ``[host]:port``, which the options have checked."""
    host, _, port = text.rpartition(":")
    return host.removeprefix("[").removesuffix("]"), int(port)


def join_address(host: str, port: int) -> str:
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"
