"""The ``splitrank`` command with ranks of ``tests.gpu.faulty_rank``."""

from splitrank.serving.cli import console
from splitrank.serving.launch import engine_client
from splitrank.serving.launch.launcher import spawn_all
from splitrank.serving.launch.processes import Children
from splitrank.serving.protocol.messages import LaunchSpec


def spawn_faulty(spec: LaunchSpec, rank_module: str, children: Children) -> None:
    spawn_all(spec, "tests.gpu.faulty_rank", children)


engine_client.spawn_all = spawn_faulty
console()
