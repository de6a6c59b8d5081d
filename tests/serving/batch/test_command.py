"""``splitrank generate`` from file to file, with a scripted model in place of the processes."""

import errno
import gzip
import json
import os
import signal
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from splitrank import __version__
from splitrank.serving.batch import command
from splitrank.serving.batch.config import GenerateConfig
from splitrank.serving.batch.manifest import locked_manifest
from splitrank.serving.launch import answer_settings
from splitrank.serving.launch.engine_client import EngineDeadError, EngineStartError
from splitrank.serving.protocol.messages import RequestOutput
from splitrank.serving.text.text_engine import PreparedModel, TextEngine
from tests.support.batch_runs import ALL, NAMES, Batch, request
from tests.support.offline_fakes import Script, echo


@pytest.fixture
def batch(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Batch:
    return Batch(tmp_path, monkeypatch)


def failing(names: set[str], error: Callable[[], Exception | RequestOutput]) -> Script:
    return lambda prompt: error() if prompt.removeprefix("say ") in names else echo(prompt)


def refusal() -> RequestOutput:
    return RequestOutput("r", [], None, "error", None, "the queue is full", "queue_full")


def dead() -> Exception:
    return EngineDeadError("rank 1 (stage 1, tp 0) was killed by signal 9")


def test_every_line_is_answered_once(batch: Batch, capsys: pytest.CaptureFixture[str]) -> None:
    batch.write(NAMES)
    assert batch.run(concurrency=4) == 0
    assert batch.texts() == ALL
    row = batch.results()["n3"]
    assert (row["response"]["status_code"], row["error"]) == (200, None)
    assert row["response"]["request_id"] == row["response"]["body"]["id"]
    client = batch.engines.clients[0]
    assert (client.most_open, client.num_closed) == (4, 1)
    captured = capsys.readouterr()
    assert captured.out == ""
    assert "20 of 20 requests" in captured.err


def test_chat_lines(batch: Batch, capsys: pytest.CaptureFixture[str]) -> None:
    body = {"messages": [{"role": "user", "content": "hi"}], "max_tokens": 99}
    batch.input.write_text(json.dumps({**request("chat"), "url": "/v1/chat/completions", "body": body}))
    assert batch.run() == 0
    message = batch.results()["chat"]["response"]["body"]["choices"][0]["message"]
    assert (message["role"], message["content"]) == ("assistant", None)
    assert "HI" in message["reasoning_content"]
    assert batch.run(reasoning_parser="none") == 2
    assert "was written with reasoning_parser = qwen3, but now it is none" in capsys.readouterr().err
    assert batch.run(reasoning_parser="none", overwrite=True) == 0
    message = batch.results()["chat"]["response"]["body"]["choices"][0]["message"]
    assert "HI" in message["content"]


def test_a_second_run_has_nothing_to_do_and_starts_nothing(batch: Batch, capsys: pytest.CaptureFixture[str]) -> None:
    batch.write(NAMES)
    assert batch.run() == 0
    content = batch.output.read_bytes()
    assert batch.run() == 0
    assert len(batch.engines.clients) == 1
    assert batch.output.read_bytes() == content
    assert "all 20 requests were answered before" in capsys.readouterr().err


def test_failed_requests_have_their_error_and_are_asked_again(batch: Batch) -> None:
    batch.write(NAMES)
    assert batch.run(failing({"n4", "n7"}, refusal)) == 3
    results = batch.results()
    assert set(results) == set(NAMES)
    assert {name for name, row in results.items() if row["error"]} == {"n4", "n7"}
    error = {"code": "queue_full", "message": "the queue is full", "param": None, "line": 5}
    assert results["n4"]["error"] == error
    assert results["n4"]["response"]["status_code"] == 503
    assert batch.run() == 0
    assert sorted(batch.engines.clients[1].prompts) == ["say n4", "say n7"]
    assert batch.texts() == ALL


def test_a_request_of_bad_numbers_is_that_lines_error(batch: Batch) -> None:
    batch.write(NAMES)
    failure = RequestOutput("r", [], None, "error", None, "the model's logits hold NaN", "invalid_numbers")
    assert batch.run(failing({"n4"}, lambda: failure)) == 3
    row = batch.results()["n4"]
    assert row["error"] == {
        "code": "invalid_numbers",
        "message": "the model's logits hold NaN",
        "param": None,
        "line": 5,
    }
    assert row["response"]["status_code"] == 500


def test_a_dead_engine_leaves_what_is_finished_and_the_next_run_continues(
    batch: Batch, capsys: pytest.CaptureFixture[str]
) -> None:
    batch.write(NAMES)
    assert batch.run(failing({"n9"}, dead), concurrency=1) == 1
    assert set(batch.texts()) == set(NAMES[:9])
    assert batch.engines.clients[0].num_closed == 1
    assert "not finished (rank 1 (stage 1, tp 0) was killed by signal 9): 9 of 20" in capsys.readouterr().err
    assert batch.run() == 0
    assert len(batch.engines.clients[1].prompts) == 11
    assert batch.texts() == ALL


def test_a_full_disk_is_named_with_what_the_next_run_finds(
    batch: Batch, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(descriptor: int) -> None:
        if (size := os.fstat(descriptor).st_size) > 3000:
            os.ftruncate(descriptor, size - 100)
            raise OSError(errno.ENOSPC, "No space left on device")

    batch.write(NAMES)
    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", full)
        assert batch.run(concurrency=1) == 1
    said = capsys.readouterr().err
    kept = len(batch.output.read_bytes().split(b"\n")) - 1
    assert (
        f"not finished ({batch.output} cannot be written: No space left on device): {kept} of 20 are answered" in said
    )
    assert batch.run() == 0
    assert f"{kept} answered before" in capsys.readouterr().err
    assert batch.texts() == ALL


def test_a_torn_last_line_is_asked_again(batch: Batch) -> None:
    batch.write(NAMES)
    batch.run(concurrency=1)
    with open(batch.output, "r+b") as file:
        file.truncate(batch.output.stat().st_size - 10)
    assert batch.run() == 0
    assert batch.engines.clients[1].prompts == ["say n19"]
    assert batch.texts() == ALL


def test_new_lines_in_the_input_continue_the_output(batch: Batch) -> None:
    batch.write(NAMES[:5])
    assert batch.run() == 0
    batch.write(NAMES)
    assert batch.run() == 0
    assert len(batch.engines.clients[1].prompts) == 15
    assert batch.texts() == ALL


def equal_lines(count: int, **body: object) -> list[dict[str, object]]:
    return [{**request("a"), "custom_id": f"n{index}", "body": {"prompt": "say a", **body}} for index in range(count)]


def seeds(batch: Batch, run: int) -> list[int | None]:
    return [params.seed for params in batch.engines.clients[run].params]


def test_a_continued_run_makes_the_draws_that_it_would_have_made(batch: Batch, tmp_path: Path) -> None:
    """Equal lines without a seed: the answers of the second half must not be those of the first."""
    for count in (8, 16):
        batch.input.write_text("".join(json.dumps(row) + "\n" for row in equal_lines(count, n=2)))
        assert batch.run(concurrency=1) == 0
    assert batch.run(concurrency=1, output=str(tmp_path / "whole.jsonl")) == 0
    assert batch.run(concurrency=1, output=str(tmp_path / "other.jsonl"), seed=1) == 0
    first, second, whole, other = (seeds(batch, run) for run in range(4))
    assert first + second == whole
    assert len({None, *whole, *other}) == 1 + 32 + 32


def test_a_seed_in_the_body_is_kept(batch: Batch) -> None:
    batch.input.write_text("".join(json.dumps(row) + "\n" for row in equal_lines(2, seed=5)))
    assert batch.run() == 0
    assert seeds(batch, 0) == [5, 5]


def test_sigterm_ends_in_order(batch: Batch, capsys: pytest.CaptureFixture[str]) -> None:
    batch.write(NAMES)

    def terminating(prompt: str) -> str:
        if prompt == "say n9":
            os.kill(os.getpid(), signal.SIGTERM)
        return echo(prompt)

    assert batch.run(terminating, concurrency=2) == 1
    assert batch.engines.clients[0].num_closed == 1
    assert batch.engines.clients[0].num_open == 0
    assert "not finished (terminated)" in capsys.readouterr().err
    assert 8 <= len(batch.results()) < 20
    assert batch.run() == 0
    assert batch.texts() == ALL


@pytest.fixture
def ctrl_c_interrupts() -> Iterator[None]:
    """As in a terminal: a shell starts what runs in its background with this signal ignored."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


@pytest.mark.usefixtures("ctrl_c_interrupts")
def test_ctrl_c_ends_in_order(batch: Batch) -> None:
    batch.write(NAMES)

    def interrupting(prompt: str) -> str:
        if prompt == "say n9":
            os.kill(os.getpid(), signal.SIGINT)
        return echo(prompt)

    with pytest.raises(KeyboardInterrupt):
        batch.run(interrupting, concurrency=2)
    assert batch.engines.clients[0].num_closed == 1
    assert batch.run() == 0
    assert batch.texts() == ALL


def test_an_engine_that_does_not_start_is_the_command_lines_matter(
    batch: Batch, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def start(_: PreparedModel) -> TextEngine:
        raise EngineStartError("rank 0: load: no memory")

    monkeypatch.setattr(command, "start_prepared", start)
    batch.write(NAMES)
    with pytest.raises(EngineStartError, match="no memory"):
        batch.run()


# ------------------------------------------------------------------ refused before anything is started: exit code 2


def refused(batch: Batch, capsys: pytest.CaptureFixture[str], **options: object) -> str:
    started = len(batch.engines.clients)
    assert batch.run(**options) == 2  # type: ignore[arg-type]
    assert len(batch.engines.clients) == started
    return capsys.readouterr().err


def test_empty_missing_and_folder_inputs(batch: Batch, capsys: pytest.CaptureFixture[str]) -> None:
    assert "is not a file" in refused(batch, capsys)
    batch.input.write_text("\n\n")
    assert "holds no requests" in refused(batch, capsys)
    for content, kind in ((gzip.compress(b"{}"), "gzip"), ("{}".encode("utf-16"), "UTF-16")):
        batch.input.write_bytes(content)
        assert f"is {kind}; batch lines are JSON in UTF-8" in refused(batch, capsys)
    assert "is a folder" in refused(batch, capsys, input=str(batch.input.parent))


def test_outputs_that_would_lose_data_or_fail_later(batch: Batch, capsys: pytest.CaptureFixture[str]) -> None:
    batch.write(NAMES)
    content = batch.input.read_bytes()
    (batch.input.parent / "link").symlink_to(batch.input)
    for output in (str(batch.input), str(batch.input.parent / "link")):
        assert "is the input file" in refused(batch, capsys, output=output, overwrite=True)
    beside = batch.input.rename(batch.input.parent / "out.jsonl.part")
    (batch.input.parent / "to-out").symlink_to(batch.input.parent / "out.jsonl")
    for name in ("out.jsonl", "to-out"):
        output = str(batch.input.parent / name)
        assert "is the input file" in refused(batch, capsys, input=str(beside), output=output, overwrite=True)
    beside.rename(batch.input)
    assert "is a folder" in refused(batch, capsys, output=str(batch.input.parent))
    assert "output . is a folder" in refused(batch, capsys, output=".")
    assert "output - is no file" in refused(batch, capsys, output="-")
    assert "does not exist" in refused(batch, capsys, output=str(batch.input.parent / "no" / "out"))
    assert "not a regular file" in refused(batch, capsys, output=os.devnull)
    assert batch.input.read_bytes() == content


def test_a_foreign_file_is_not_continued_but_may_be_overwritten(
    batch: Batch, capsys: pytest.CaptureFixture[str]
) -> None:
    batch.write(NAMES)
    batch.output.write_text("my notes\n")
    assert "so this command did not write it" in refused(batch, capsys)
    assert batch.output.read_text() == "my notes\n"
    assert os.listdir(batch.output.parent).count("out.jsonl.manifest.json") == 0
    assert batch.run(overwrite=True) == 0
    assert batch.texts() == ALL


CHANGES: list[tuple[dict[str, object], str]] = [
    ({"tp_size": 2}, "tp = 1, but now it is 2"),
    ({"pp_size": 2, "partition": (1, 1)}, "pp = 1, but now it is 2"),
    ({"partition": (3,)}, "pp_partition = [1], but now it is [3]"),
    ({"dtype": "bfloat16"}, "dtype = float32, but now it is bfloat16"),
    ({"threads_per_rank": 2}, "threads_per_rank = 1, but now it is 2"),
    ({"max_model_len": 2048}, "max_model_len = 4096, but now it is 2048"),
    ({"page_size": 16}, "page_size = 4, but now it is 16"),
    ({"chunked_prefill_size": 16}, "chunked_prefill_size = 8, but now it is 16"),
    ({"prefix_cache_bytes": 5}, "prefix_cache_bytes = 0, but now it is 5"),
    ({"seed": 5}, "seed = 0, but now it is 5"),
    ({"eos_token_ids": (5,)}, "eos_token_ids = [], but now it is [5]"),
]


@pytest.mark.parametrize(("spec", "said"), CHANGES, ids=[said for _, said in CHANGES])
def test_what_may_change_an_answer_is_refused_with_both_values_and_overwrite_starts_anew(
    batch: Batch, capsys: pytest.CaptureFixture[str], spec: dict[str, object], said: str
) -> None:
    batch.write(NAMES)
    assert batch.run() == 0
    batch.spec = spec
    assert f"was written with {said}: name another --output" in refused(batch, capsys)
    assert batch.run(overwrite=True) == 0
    assert len(batch.engines.clients[1].prompts) == 20
    assert batch.run() == 0


def test_another_all_reduce_matters_among_tensor_ranks_only(batch: Batch, capsys: pytest.CaptureFixture[str]) -> None:
    batch.write(NAMES)
    for tp_size in (1, 2):
        batch.spec = {"tp_size": tp_size}
        assert batch.run(overwrite=True) == 0
        batch.spec |= {"all_reduce": "torch"}
        if tp_size == 1:
            assert batch.run() == 0
        else:
            assert "was written with all_reduce = auto, but now it is torch" in refused(batch, capsys)


def test_another_version_is_refused(
    batch: Batch, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    batch.write(NAMES)
    assert batch.run() == 0
    monkeypatch.setattr(answer_settings, "__version__", "99.0")
    assert f"was written with version = {__version__}, but now it is 99.0" in refused(batch, capsys)


def test_limits_and_logs_may_change_between_runs(batch: Batch) -> None:
    batch.write(NAMES[:10])
    assert batch.run() == 0
    batch.write(NAMES)
    batch.spec = {"num_pages": 2000, "max_running_requests": 3, "step_timeout_s": 7.0, "log_level": "debug"}
    assert batch.run() == 0


def test_another_model_is_refused(batch: Batch, capsys: pytest.CaptureFixture[str]) -> None:
    batch.write(NAMES)
    assert batch.run() == 0
    (batch.model / "model.safetensors").write_bytes(b"other weights")
    assert "was written with model_hash = " in refused(batch, capsys)


def test_changed_and_removed_requests_are_refused(batch: Batch, capsys: pytest.CaptureFixture[str]) -> None:
    batch.write(NAMES)
    assert batch.run() == 0
    changed = [{**request(name), "body": {"prompt": "say else"}} for name in NAMES]
    batch.input.write_text("".join(json.dumps(row) + "\n" for row in changed))
    assert "'n0' has another body in the input now" in refused(batch, capsys)
    batch.write(NAMES[1:])
    assert "'n0' is not in the input" in refused(batch, capsys)


def test_an_output_that_another_run_writes(batch: Batch, capsys: pytest.CaptureFixture[str]) -> None:
    batch.write(NAMES)
    with locked_manifest(batch.output):
        assert "another run is writing this output" in refused(batch, capsys)


@pytest.mark.parametrize(
    ("values", "reason"),
    [
        ({"output": "x"}, "--input is required"),
        ({"input": "x"}, "--output is required"),
        ({"input": "x", "output": "y", "concurrency": 0}, "concurrency"),
        ({"input": "x", "output": "y", "concurrency": 41, "max_running_requests": 32, "max_queued_requests": 8}, "40"),
    ],
)
def test_config_refuses(values: dict[str, object], reason: str) -> None:
    with pytest.raises(ValueError, match=reason):
        GenerateConfig(**values)  # type: ignore[arg-type]
