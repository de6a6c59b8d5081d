"""Which host of how many this is, as the launchers that start a command on every host tell it."""

import re
from collections.abc import Mapping
from typing import Any

SLURM_PORT = 29500  # torch's own default
LWS_PORT = 29500
_HOST_LIST = re.compile(r"([^,\[\]]+)(?:\[([^\]]*)\])?")


def nodes_of(environ: Mapping[str, str]) -> dict[str, Any]:
    """Values of the options ``nnodes``, ``node_rank`` and ``dist_init_addr``; empty if no launcher says so.

    torchrun: one process a host (``--nproc-per-node 1``). SLURM: of a step (``srun``), not of an allocation, in which
    a command runs on one host. LeaderWorkerSet: of its pod. Raises ``ValueError`` for one that cannot be understood.
    """
    if "TORCHELASTIC_RUN_ID" in environ:
        return _of_torchrun(environ)
    if "LWS_LEADER_ADDRESS" in environ:
        address = f"{environ['LWS_LEADER_ADDRESS']}:{LWS_PORT}"
        return _nodes("LeaderWorkerSet", environ, "LWS_GROUP_SIZE", "LWS_WORKER_INDEX", address)
    if "SLURM_STEP_NODELIST" in environ and "SLURM_STEP_NUM_NODES" in environ:
        address = f"{first_host(environ['SLURM_STEP_NODELIST'])}:{SLURM_PORT}"
        return _nodes("SLURM", environ, "SLURM_STEP_NUM_NODES", "SLURM_NODEID", address)
    return {}


def _of_torchrun(environ: Mapping[str, str]) -> dict[str, Any]:
    if environ.get("LOCAL_WORLD_SIZE", "1") != "1":
        raise ValueError(
            f"torchrun starts {environ['LOCAL_WORLD_SIZE']} processes a host; splitrank starts its ranks itself: give "
            "torchrun --nproc-per-node 1"
        )
    # torchrun's own store has the port itself.
    address = f"{environ['MASTER_ADDR']}:{int(environ['MASTER_PORT']) + 1}"
    return _nodes("torchrun", environ, "GROUP_WORLD_SIZE", "GROUP_RANK", address)


def _nodes(launcher: str, environ: Mapping[str, str], size: str, rank: str, address: str) -> dict[str, Any]:
    try:
        num_nodes, node_rank = int(environ[size]), int(environ[rank])
    except (KeyError, ValueError):
        raise ValueError(f"{launcher} does not say the number of hosts ({size}) and of this one ({rank})") from None
    if num_nodes == 1:
        return {}
    return {"nnodes": num_nodes, "node_rank": node_rank, "dist_init_addr": address}


def first_host(host_list: str) -> str:
    """Of SLURM's notation: ``node[03-04,9],other`` is node03 first."""
    match = _HOST_LIST.match(host_list)
    if match is None:
        raise ValueError(f"SLURM's list of hosts {host_list!r} has no first one")
    name, numbers = match.groups()
    return name if numbers is None else name + re.split("[-,]", numbers)[0]


def check_init_address(text: str, num_nodes: int) -> None:
    """``ValueError`` if ``text`` is not HOST:PORT."""
    host, colon, port = text.rpartition(":")
    if not colon or not host or not (port.isascii() and port.isdigit()) or not 0 < int(port) < 65536:
        raise ValueError(f"dist_init_addr must be HOST:PORT of host 0 with nnodes {num_nodes}, not {text[:100]!r}")
