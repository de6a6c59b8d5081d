"""``splitrank generate``: complete, resumable, every line answered once."""

import json
import subprocess
from pathlib import Path
from typing import Any

from tests.e2e.servers import (
    EXIT_S,
    ROOT,
    environment,
    processes_of,
    run_dirs,
    run_forked,
    splitrank_command,
    wait_until,
)
from tests.support.limits import scaled

ONE_RANK = ("--dtype", "float32", "--threads-per-rank", 1, "--max-model-len", 2048)


def mixed_line(index: int, max_tokens: int) -> dict[str, Any]:
    """Chat and completions, greedy and sampled, text and ids, long and short."""
    sampling = {"temperature": 0} if index % 3 else {"temperature": 1.0, "seed": index}
    body = {"max_tokens": max_tokens, "ignore_eos": True, **sampling}
    line = {"custom_id": f"request-{index}", "method": "POST", "url": "/v1/completions"}
    if index % 2:
        messages = [{"role": "user", "content": f"Número {index}: what is {index} + 1? 数"}]
        return {**line, "url": "/v1/chat/completions", "body": {**body, "messages": messages}}
    return {**line, "body": {**body, "prompt": [index + 5] * (1 + index * 9) if index % 4 else f"Line {index}"}}


def write_input(folder: Path, num_lines: int, max_tokens: int) -> Path:
    file = folder / "in.jsonl"
    lines = [json.dumps(mixed_line(index, max_tokens), ensure_ascii=False) for index in range(num_lines)]
    file.write_text("\n".join(lines))
    return file


def read_results(file: Path) -> dict[str, Any]:
    """By custom_id; a line twice is an error."""
    results: dict[str, Any] = {}
    for line in file.read_text().splitlines():
        result = json.loads(line)
        assert result["custom_id"] not in results
        results[result["custom_id"]] = result
    return results


def text_of(result: dict[str, Any]) -> str:
    choice = result["response"]["body"]["choices"][0]
    text: str = choice["message"]["content"] if "message" in choice else choice["text"]
    return text


def test_every_line_is_answered(temporary: Path) -> None:
    source, output = write_input(temporary, 24, max_tokens=12), temporary / "out.jsonl"
    command = ("generate", "--input", source, "--output", output, "--pp", 2, *ONE_RANK)
    finished = run_forked(temporary, *command)
    assert finished.returncode == 0, finished.stderr
    assert "24 answered, 0 failed" in finished.stderr
    results = read_results(output)
    assert set(results) == {f"request-{index}" for index in range(24)}
    for result in results.values():
        assert result["error"] is None
        assert result["response"]["status_code"] == 200
        assert result["response"]["body"]["usage"]["completion_tokens"] == 12
    again = run_forked(temporary, *command)
    assert (again.returncode, read_results(output)) == (0, results)
    assert "all 24 requests were answered before" in again.stderr


def test_equal_sampled_lines_in_two_runs_are_answered_as_in_one(temporary: Path) -> None:
    body = {"prompt": "Once upon a time", "max_tokens": 24, "temperature": 1.0, "ignore_eos": True}
    lines = [
        json.dumps({"custom_id": f"{index}", "method": "POST", "url": "/v1/completions", "body": body})
        for index in range(16)
    ]
    source, halves, whole = temporary / "in.jsonl", temporary / "halves.jsonl", temporary / "whole.jsonl"
    for output, count in ((halves, 8), (halves, 16), (whole, 16)):
        source.write_text("\n".join(lines[:count]))
        finished = run_forked(temporary, "generate", "--input", source, "--output", output, *ONE_RANK)
        assert finished.returncode == 0, finished.stderr
    texts = [{name: text_of(result) for name, result in read_results(output).items()} for output in (halves, whole)]
    assert texts[0] == texts[1]
    assert len(set(texts[0].values())) == 16


def kill_during(temporary: Path, command: tuple[object, ...], output: Path, victim: str, num_lines: int) -> None:
    """Runs the command until ``num_lines`` are answered, kills the front or the rank, and waits for the end of all."""
    with open(temporary / "stderr", "w") as stderr:
        running = subprocess.Popen(splitrank_command(*command), cwd=ROOT, env=environment(temporary), stderr=stderr)
    try:
        wait_until(lambda: output.exists() and output.read_bytes().count(b"\n") >= num_lines, "answers", 60)
        if victim == "front":
            running.kill()
        else:
            next(p for p in processes_of(temporary) if p.cmdline()[-2:] == ["--rank", "0"]).kill()
        assert running.wait(timeout=scaled(EXIT_S)) == (-9 if victim == "front" else 1)
    finally:
        running.kill()
        running.wait(timeout=scaled(EXIT_S))
    wait_until(lambda: not processes_of(temporary) and not run_dirs(temporary), "the processes to end")


def test_a_run_killed_twice_ends_like_one_without_interruption(temporary: Path) -> None:
    source, output = write_input(temporary, 16, max_tokens=24), temporary / "out.jsonl"
    command = ("generate", "--input", source, "--output", output, *ONE_RANK, "--concurrency", 2)
    kill_during(temporary, command, output, "rank", 2)
    assert "run the same command again" in (temporary / "stderr").read_text()
    first = read_results(output)
    kill_during(temporary, command, output, "front", len(first) + 2)
    with open(output, "ab") as torn:
        torn.write(b'{"id": "batch_req_')  # what a kill in the middle of a write leaves
    finished = run_forked(temporary, *command)
    assert finished.returncode == 0, finished.stderr
    results = read_results(output)
    assert len(results) == 16
    assert {name: results[name] for name in first} == first
    assert 2 <= len(first) < 16
    whole = run_forked(temporary, *command, "--overwrite")
    assert whole.returncode == 0, whole.stderr
    uninterrupted = read_results(output)
    assert {name: text_of(result) for name, result in results.items()} == {
        name: text_of(result) for name, result in uninterrupted.items()
    }
