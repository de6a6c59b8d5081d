"""Which host of how many: from flags, or from what torchrun, SLURM and LeaderWorkerSet put into the environment."""

from pathlib import Path
from typing import Any

import pytest

from splitrank.serving.launch.resolve import resolve_launch
from splitrank.serving.options.config import EngineConfig, ServeConfig, hosts_secret, with_launcher_options
from splitrank.serving.options.nodes import first_host, nodes_of
from splitrank.serving.options.options import read_toml

DEPLOY = Path(__file__).parents[3] / "configs" / "deploy"

TORCHRUN = {
    "TORCHELASTIC_RUN_ID": "none",
    "LOCAL_WORLD_SIZE": "1",
    "MASTER_ADDR": "node0",
    "MASTER_PORT": "29400",
    "GROUP_WORLD_SIZE": "2",
    "GROUP_RANK": "1",
}
SLURM = {"SLURM_STEP_NODELIST": "gpu[07-08]", "SLURM_STEP_NUM_NODES": "2", "SLURM_NODEID": "1"}
LWS = {"LWS_LEADER_ADDRESS": "lws-0.lws.default", "LWS_GROUP_SIZE": "2", "LWS_WORKER_INDEX": "1"}


@pytest.mark.parametrize(
    ("environ", "address"),
    [(TORCHRUN, "node0:29401"), (SLURM, "gpu07:29500"), (LWS, "lws-0.lws.default:29500")],
)
def test_a_launcher_says_who_is_who(environ: dict[str, str], address: str) -> None:
    assert nodes_of(environ) == {"nnodes": 2, "node_rank": 1, "dist_init_addr": address}


def test_one_host_is_no_layout_of_several() -> None:
    assert nodes_of({}) == {}
    assert nodes_of(TORCHRUN | {"GROUP_WORLD_SIZE": "1", "GROUP_RANK": "0"}) == {}
    assert nodes_of({"SLURM_NNODES": "4", "SLURM_NODEID": "0"}) == {}  # an allocation, not a step


@pytest.mark.parametrize(
    ("environ", "said"),
    [
        (TORCHRUN | {"LOCAL_WORLD_SIZE": "8"}, "give torchrun --nproc-per-node 1"),
        (SLURM | {"SLURM_NODEID": ""}, "SLURM does not say the number of hosts"),
        (SLURM | {"SLURM_STEP_NODELIST": ""}, "has no first one"),
    ],
)
def test_what_a_launcher_says_wrong_is_refused(environ: dict[str, str], said: str) -> None:
    with pytest.raises(ValueError, match=said):
        nodes_of(environ)


@pytest.mark.parametrize(
    ("listed", "first"),
    [("n1", "n1"), ("n1,n2", "n1"), ("n[3,7-9]", "n3"), ("gpu-a[01-04],b", "gpu-a01"), ("a.b.c,d", "a.b.c")],
)
def test_the_first_host_of_slurms_list(listed: str, first: str) -> None:
    assert first_host(listed) == first


def test_flags_beat_the_launcher(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in LWS.items():
        monkeypatch.setenv(name, value)
    assert with_launcher_options(EngineConfig(pp=2)).node_rank == 1
    assert with_launcher_options(EngineConfig(pp=2, dist_init_addr="x:1")).dist_init_addr == "x:1"
    assert with_launcher_options(EngineConfig(nnodes=1)).num_nodes == 1
    monkeypatch.undo()
    with pytest.raises(ValueError, match="dist_init_addr x:1 is of several hosts: give --nnodes and --node-rank"):
        with_launcher_options(EngineConfig(dist_init_addr="x:1"))
    assert EngineConfig().num_nodes == 1  # Python's LLM asks no launcher


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"nnodes": 2, "pp": 2}, "dist_init_addr must be HOST:PORT of host 0 with nnodes 2, not ''"),
        (
            {"nnodes": 2, "pp": 2, "dist_init_addr": "host"},
            "dist_init_addr must be HOST:PORT of host 0 with nnodes 2, not 'host'",
        ),
        ({"nnodes": 2, "node_rank": 2, "dist_init_addr": "h:1"}, "node_rank 2: 2 hosts are numbered from 0"),
        ({"node_rank": 1}, "node_rank 1: 1 hosts are numbered from 0"),
    ],
)
def test_numbers_of_hosts_that_cannot_be(options: dict[str, Any], said: str) -> None:
    with pytest.raises(ValueError, match=said):
        EngineConfig(**options)


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"tp": 2}, r"tp 2 x pp 1 over 2 hosts: tensor ranks stay within a host, .* give --pp 2 or a multiple"),
        ({"pp": 3}, r"tp 1 x pp 3 over 2 hosts: "),
        ({"pp": 2}, "several hosts need a secret: give --secret-file or SPLITRANK_SECRET"),
    ],
)
def test_layouts_that_hosts_cannot_have(options: dict[str, Any], said: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("SPLITRANK_SECRET", raising=False)
    with pytest.raises(ValueError, match=said):
        resolve_launch(EngineConfig(nnodes=2, dist_init_addr="h:1", **options))


def test_a_host_is_sized_for_its_own_stages(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SPLITRANK_SECRET", "0123456789abcdef")
    spec = resolve_launch(EngineConfig(nnodes=2, node_rank=1, pp=4, dist_init_addr="h:1"))
    assert (spec.num_nodes, spec.local_ranks, spec.ranks_per_node) == (2, range(2, 4), 2)
    with pytest.raises(ValueError, match="stage_link device: "):
        resolve_launch(EngineConfig(nnodes=2, pp=4, dist_init_addr="h:1", stage_link="device"))


def test_the_secret_comes_from_a_file_or_the_environment(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("SPLITRANK_SECRET", "of the environment")
    (tmp_path / "secret").write_text("of the file\n")
    assert hosts_secret("") == b"of the environment"
    assert hosts_secret(str(tmp_path / "secret")) == b"of the file"
    with pytest.raises(ValueError, match="cannot be read"):
        hosts_secret(str(tmp_path / "none"))


@pytest.mark.parametrize("file", sorted(DEPLOY.glob("*.toml")), ids=lambda file: file.name)
def test_the_deployment_files_are_read(file: Path) -> None:
    config = ServeConfig(**read_toml(ServeConfig, file))
    assert (config.num_nodes, config.pp) == (2, 2)


def test_there_are_deployment_files() -> None:
    assert {file.suffix for file in DEPLOY.iterdir()} == {".toml", ".sbatch", ".yaml", ".sh"}
