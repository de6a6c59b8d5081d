"""Starts ranks of the CPU module as processes (cpu_rank.py) and speaks with them."""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

from tests.support.limits import PROGRAM_S, scaled

ROOT = Path(__file__).parents[2]


class RankProcess:
    def __init__(self, rank: int, world_size: int, *arguments: str) -> None:
        command = [sys.executable, "-m", "tests.csrc.cpu_rank", str(rank), str(world_size), *arguments]
        self.process = subprocess.Popen(
            command, cwd=ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, bufsize=1
        )

    def tell(self, message: Any) -> None:
        assert self.process.stdin is not None
        self.process.stdin.write(json.dumps(message) + "\n")
        self.process.stdin.flush()

    def hear(self) -> dict[str, Any]:
        assert self.process.stdout is not None
        line = self.process.stdout.readline()
        assert line, f"rank process ended with {self.process.wait(scaled(PROGRAM_S))}"
        heard: dict[str, Any] = json.loads(line)
        return heard

    def end(self) -> int:
        """Its exit status, after it has closed its communicator."""
        assert self.process.stdin is not None
        assert self.process.stdout is not None
        self.process.stdin.close()
        status = self.process.wait(scaled(PROGRAM_S))
        self.process.stdout.close()
        return status

    def kill(self) -> None:
        self.process.kill()
        self.process.wait(scaled(PROGRAM_S))


class Processes:
    """All ranks of a world, opened. Leaves no process behind."""

    def __init__(self, world_size: int) -> None:
        self.ranks = [RankProcess(rank, world_size) for rank in range(world_size)]

    def __enter__(self) -> "Processes":
        handles = [rank.hear()["handle"] for rank in self.ranks]
        for rank in self.ranks:
            rank.tell(handles)
        assert [rank.hear() for rank in self.ranks] == [{"opened": True}] * len(self.ranks)
        return self

    def __exit__(self, *_: object) -> None:
        for rank in self.ranks:
            rank.kill()
            for pipe in (rank.process.stdin, rank.process.stdout):
                if pipe is not None and not pipe.closed:
                    pipe.close()
