"""The ``splitrank`` command whose engine and ranks are forked (``forked.py``), as it is itself when a test runs it by
``ForkedProcess``. ``RANK`` may name another module of the ranks, which plants the faults that a test asks for.
"""

import os

from splitrank.serving.cli import console
from splitrank.serving.launch import engine_client
from tests.support.fault_names import RANK
from tests.support.faulty_splitrank import spawn_faulty
from tests.support.forked import forked_children

if __name__ == "__main__":
    if RANK in os.environ:
        engine_client.spawn_all = spawn_faulty
    with forked_children():
        console()
