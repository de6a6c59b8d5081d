"""``splitrank generate`` killed with SIGKILL in the middle, with real engine and rank processes; then run again."""

import json
import os
import signal
import subprocess
import sys
import textwrap
import time
from pathlib import Path

from tests.support.limits import ANSWER_S, PROGRAM_S, scaled

NUM_LINES = 60  # far more than end while the first result is noticed

COMMAND = """
import sys
from pathlib import Path
from splitrank.serving.batch import command
from splitrank.serving.batch.config import GenerateConfig
from splitrank.serving.launch.engine_client import EngineClient
from splitrank.serving.text.text_engine import TextEngine
from tests.support.offline_fakes import prepared_model

folder = Path(sys.argv[1])

async def start(prepared):
    client = await EngineClient.start(prepared.spec, "tests.support.fake_rank")
    (folder / "pids").write_text(" ".join(map(str, client.pids.values())))
    return TextEngine(client, prepared.tokenizer, prepared.info)

command.prepare_model = lambda config, name: prepared_model(folder / "model", pp_size=2)
command.start_prepared = start
config = GenerateConfig(input=str(folder / "in.jsonl"), output=str(folder / "out.jsonl"), concurrency=4)
raise SystemExit(command.run(config))
"""


def start(folder: Path) -> subprocess.Popen[str]:
    command = [sys.executable, "-c", textwrap.dedent(COMMAND), str(folder)]
    return subprocess.Popen(command, stderr=subprocess.PIPE, text=True)


def wait_until_gone(pids: list[str], timeout_s: float) -> None:
    end = time.monotonic() + timeout_s
    while any(Path("/proc", pid).exists() for pid in pids):
        assert time.monotonic() < end, f"processes left behind: {pids}"
        time.sleep(0.05)


def wait_for_results(folder: Path, running: subprocess.Popen[str], timeout_s: float) -> None:
    end = time.monotonic() + timeout_s
    output = folder / "out.jsonl"
    while not output.exists() or output.stat().st_size == 0:
        assert running.poll() is None, "it ended before any result"
        assert time.monotonic() < end, "no result came"
        time.sleep(0.002)


def test_a_killed_run_is_continued_and_every_line_answered_once(tmp_path: Path) -> None:
    body = {"prompt": [1, 2, 3], "max_tokens": 200, "return_token_ids": True, "ignore_eos": True}
    line = {"method": "POST", "url": "/v1/completions"}
    rows = [{"custom_id": str(n), **line, "body": {**body, "prompt": [n, 5]}} for n in range(NUM_LINES)]
    (tmp_path / "in.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))

    with start(tmp_path) as first:
        wait_for_results(tmp_path, first, scaled(PROGRAM_S))
        os.kill(first.pid, signal.SIGKILL)
        first.wait(scaled(ANSWER_S))
    wait_until_gone((tmp_path / "pids").read_text().split(), scaled(ANSWER_S))
    num_before = (tmp_path / "out.jsonl").read_bytes().count(b"\n")
    assert 0 < num_before < NUM_LINES

    with start(tmp_path) as second:
        _, errors = second.communicate(timeout=scaled(PROGRAM_S))
    assert second.returncode == 0, errors
    assert f"{num_before} answered before, {NUM_LINES - num_before} to do" in errors
    results = [json.loads(text) for text in (tmp_path / "out.jsonl").read_text().splitlines()]
    assert sorted(int(result["custom_id"]) for result in results) == list(range(NUM_LINES))
    lengths = {len(result["response"]["body"]["choices"][0]["token_ids"]) for result in results}
    assert lengths == {200}
