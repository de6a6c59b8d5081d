"""The ``splitrank`` command with ranks of ``faulty_rank``: ``python -m tests.e2e.faulty_splitrank gsm8k ...``."""

from splitrank.serving import engine_client
from splitrank.serving.cli import console
from splitrank.serving.launcher import spawn_all
from splitrank.serving.messages import LaunchSpec
from splitrank.serving.processes import Children


def spawn_faulty(spec: LaunchSpec, rank_module: str, children: Children) -> None:
    spawn_all(spec, "tests.e2e.faulty_rank", children)


engine_client.spawn_all = spawn_faulty
console()
