"""The ``splitrank`` command with ranks of another module: ``python -m tests.support.faulty_splitrank serve ...``.

``RANK`` names the module; it plants the faults that a test asks for.
"""

import os

from splitrank.serving.cli import console
from splitrank.serving.launch import engine_client
from splitrank.serving.launch.launcher import spawn_all
from splitrank.serving.launch.processes import Children
from splitrank.serving.protocol.messages import LaunchSpec
from tests.support.fault_names import RANK


def spawn_faulty(spec: LaunchSpec, rank_module: str, children: Children) -> None:
    spawn_all(spec, os.environ[RANK], children)


if __name__ == "__main__":
    engine_client.spawn_all = spawn_faulty
    console()
