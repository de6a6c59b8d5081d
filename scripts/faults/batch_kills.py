"""``splitrank generate``, killed again and again, and continued."""

import json
import re
import signal
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path
from random import Random

from case import POLL_S, Case, CaseFailed, demand, wait_for
from scene import END_S, ROOT, Scene
from server import COMMON, START_S

NUM_KILLS = 10
NUM_LINES = 60
LIMIT_S = 300.0
# An answer's own id is random, and it says when it was made. Nothing else may differ between two runs.
OF_THE_MOMENT = re.compile(rb'(?<="created":)\d+|(?<=cmpl-)[0-9a-f]{32}')


def cases() -> Iterator[Case]:
    yield Case("batch", f"killed at {NUM_KILLS} random moments", killed_again_and_again)


class Batch:
    """Lines of all kinds, greedy and sampled. ``output`` may be changed between runs."""

    def __init__(self, scene: Scene, num_lines: int = NUM_LINES) -> None:
        self._scene = scene
        self.num_lines = num_lines
        self.input = scene.folder / "in.jsonl"
        self.output = scene.folder / "out.jsonl"
        self.input.write_text("".join(json.dumps(_line(index)) + "\n" for index in range(num_lines)))

    def start(self) -> "subprocess.Popen[str]":
        return self._start(self.output)

    def _start(self, output: Path) -> "subprocess.Popen[str]":
        files = ("--input", self.input, "--output", output)
        command = self._scene.command("generate", *files, "--pp", 2, "--concurrency", 4, *COMMON)
        environ, nowhere = self._scene.environment, subprocess.DEVNULL
        return subprocess.Popen(command, cwd=ROOT, env=environ, text=True, stdout=nowhere, stderr=subprocess.PIPE)

    def run(self) -> tuple[int, str]:
        """Exit code and stderr of a whole run."""
        return _finish(self.start())

    def answers_without_interruption(self) -> list[bytes]:
        output = self.output.with_name("whole.jsonl")
        code, said = _finish(self._start(output))
        demand(code == 0, f"a run without faults ends with code {code}: {said.strip()}")
        return _lines(output)

    def answers(self) -> list[bytes]:
        """The output's lines without what is of the moment, by custom_id: their order is that of their ends."""
        return _lines(self.output)

    def num_answered(self) -> int:
        return self.output.read_bytes().count(b"\n") if self.output.exists() else 0


def _line(index: int) -> dict[str, object]:
    sampling = {"temperature": 0} if index % 3 else {"temperature": 1.0}
    body: dict[str, object] = {"max_tokens": 24, "ignore_eos": True, **sampling}
    line = {"custom_id": f"request-{index:04}", "method": "POST", "url": "/v1/completions"}
    if index % 2:
        messages = [{"role": "user", "content": f"What is {index} + 1?"}]
        return {**line, "url": "/v1/chat/completions", "body": {**body, "messages": messages}}
    return {**line, "body": {**body, "prompt": [index + 5] * (1 + index * 3)}}


def _finish(running: "subprocess.Popen[str]") -> tuple[int, str]:
    try:
        _, said = running.communicate(timeout=LIMIT_S)
    except subprocess.TimeoutExpired:
        raise CaseFailed(f"the batch runs after {LIMIT_S:g} s") from None
    return running.returncode, said


def _lines(output: Path) -> list[bytes]:
    lines = OF_THE_MOMENT.sub(b"0", output.read_bytes()).splitlines()
    return sorted(lines, key=lambda line: str(json.loads(line)["custom_id"]))


def killed_again_and_again(scene: Scene) -> str:
    batch, draw = Batch(scene), Random(3)
    whole = batch.answers_without_interruption()
    reached = []
    for number in range(NUM_KILLS):
        _kill_once(scene, batch, draw, in_start=number % 3 == 2)
        reached.append(batch.num_answered())
    code, said = batch.run()
    demand(code == 0, f"the last run ends with code {code}: {said.strip()}")
    demand(len(batch.answers()) == batch.num_lines, f"{len(batch.answers())} lines instead of {batch.num_lines}")
    demand(batch.answers() == whole, "the answers differ from those of an uninterrupted run")
    return f"answers kept: {', '.join(map(str, reached))}; at the end the same bytes"


def _kill_once(scene: Scene, batch: Batch, draw: Random, in_start: bool) -> None:
    """Kills the front, the engine or a rank at a random moment, of the start or of the answers."""
    running = batch.start()
    answered = batch.num_answered()
    if in_start:
        time.sleep(draw.uniform(0, 4))
    else:
        wanted = answered + draw.randint(1, 5)
        wait_for(lambda: batch.num_answered() >= wanted or running.poll() is not None, "answers", START_S)
        time.sleep(draw.uniform(0, 0.05))
    demand(running.poll() is None, "the batch had ended before it was to be killed")
    victims = scene.processes()
    victim = draw.choice(victims)
    victim.kill()
    code, said = _finish(running)
    expected = -signal.SIGKILL if victim.pid == running.pid else 1
    demand(code == expected, f"exit code {code} instead of {expected}: {said.strip()}")
    deadline = time.monotonic() + END_S
    while left := scene.leftovers():
        demand(time.monotonic() < deadline, f"left behind: {', '.join(left)}")
        time.sleep(POLL_S)
