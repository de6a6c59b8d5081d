"""A bad line is its own error: all others are answered, nothing is a traceback, and the exit code is 3."""

import json
from pathlib import Path

import pytest

from splitrank.serving.openai.parser import RequestParser
from splitrank.serving.openai.requests import ParsedRequest
from splitrank.serving.protocol.messages import RequestOutput, TokenLogprobs
from splitrank.serving.text.tokenizer import Tokenizer
from tests.support.batch_runs import ALL, NAMES, Batch, request
from tests.support.offline_fakes import VOCAB_SIZE, echo


@pytest.fixture
def batch(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Batch:
    return Batch(tmp_path, monkeypatch)


def with_body(**fields: object) -> bytes:
    return json.dumps({**request("bad"), "body": {"prompt": "x", **fields}}).encode()


BAD_LINES: dict[str, tuple[bytes, str | None, str]] = {  # raw, custom_id of the error line, what its message says
    "top_k that fits no message": (with_body(top_k=2**64), "bad", "top_k"),
    "a lone surrogate": (with_body(prompt="\ud83d"), "bad", "surrogate"),
    "nested deeply": (b'{"custom_id": "bad", "body": ' + b"[" * 10**5 + b"]" * 10**5 + b"}", None, "nested too deeply"),
    "thousands of digits": (with_body(max_tokens=1).replace(b": 1}", b": " + b"9" * 4301 + b"}"), "bad", "digits"),
    "almost too many digits": (with_body(max_tokens=1).replace(b": 1}", b": " + b"9" * 4300 + b"}"), "bad", ""),
    "a prompt that is too long": (with_body(prompt="x " * 5000), "bad", "4096 tokens"),
    "another model": (with_body(model="org/other"), "bad", "'org/other' does not exist"),
    "a wrong type": (with_body(max_tokens="5"), "bad", "max_tokens"),
    "a token that is not there": (with_body(prompt=[5, VOCAB_SIZE]), "bad", "token id 1000"),
    "a stream": (with_body(stream=True), "bad", "cannot stream"),
    "no JSON": (b'{"custom_id": "bad", ', None, "not valid JSON"),
    "no UTF-8": (b'{"custom_id": "b\xff"}', None, "not valid UTF-8"),
    "not a number": (with_body(seed=5).replace(b"5}", b"NaN}"), "bad", "NaN"),
    "a key twice": (with_body().replace(b"{", b'{"url": "/v1/completions", ', 1), "bad", "duplicate key"),
    "no custom_id": (b"{}", None, "custom_id"),
    "a custom_id that is a number": (b'{"custom_id": 5}', None, "custom_id"),
    "another method": (json.dumps({**request("bad"), "method": "GET"}).encode(), "bad", "method"),
    "the custom_id of another line": (json.dumps(request("n1")).encode(), "n1", "custom_id 'n1' is also in line 2"),
    "an answer that is no JSON": (json.dumps(request("nan")).encode(), "nan", "ValueError"),
    "an answer that breaks": (json.dumps(request("breaks")).encode(), "breaks", "KeyError: 'a bug'"),
}


def breaking(prompt: str) -> str | Exception | RequestOutput:
    if prompt == "say breaks":
        return KeyError("a bug")
    if prompt == "say nan":
        return RequestOutput("r", [5], [TokenLogprobs(float("nan"), [], [])], "stop")
    return echo(prompt)


@pytest.mark.parametrize("bad", BAD_LINES)
def test_a_bad_line_is_its_own_error_and_no_other_lines(
    batch: Batch, capsys: pytest.CaptureFixture[str], bad: str
) -> None:
    raw, custom_id, said = BAD_LINES[bad]
    batch.write(["n0", "n1", "n2"])
    rows = batch.input.read_bytes().splitlines()
    if bad == "an answer that is no JSON":
        raw = raw.replace(b"64}", b'64, "logprobs": 0}')
    batch.input.write_bytes(b"\n".join([*rows[:2], raw, rows[2]]))
    for _ in range(2):  # a rerun keeps the answers and asks the bad line again
        assert batch.run(breaking, concurrency=2) == 3
        results = [json.loads(line) for line in batch.output.read_text().splitlines()]
        answers = {row["custom_id"]: row for row in results if row["error"] is None}
        assert set(answers) == {"n0", "n1", "n2"}
        (failed,) = [row for row in results if row["error"] is not None]
        assert failed["custom_id"] == custom_id
        assert set(failed["error"]) == {"code", "message", "param", "line"}
        assert failed["error"]["line"] == 3
        assert said in failed["error"]["message"]
        assert failed["response"]["status_code"] in (400, 404, 500)
        assert failed["response"]["body"]["error"]["message"] == failed["error"]["message"]
        error = capsys.readouterr().err
        assert "Traceback" not in error
        assert f"1 failed (the first: {batch.input}:3: " in error
    assert {"say n0", "say n1", "say n2"} <= set(batch.engines.clients[0].prompts)
    asked = [prompt for client in batch.engines.clients for prompt in client.prompts]
    assert len([prompt for prompt in asked if prompt in ("say n0", "say n1", "say n2")]) == 3


@pytest.mark.parametrize(
    "error",
    [
        RecursionError("deep"),
        OverflowError("2^64"),
        UnicodeEncodeError("utf-8", "\ud83d", 0, 1, "surrogates not allowed"),
        TypeError("a\nb"),
        KeyError("name"),
        MemoryError(),
    ],
    ids=repr,
)
def test_whatever_the_parser_stumbles_over_is_that_lines_error(
    batch: Batch, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, error: Exception
) -> None:
    parse = RequestParser.parse

    def stumbling(self: RequestParser, url: str, body: bytes, *others: object) -> ParsedRequest:
        if b"say n7" in body:
            raise error
        return parse(self, url, body, *others)

    monkeypatch.setattr(RequestParser, "parse", stumbling)
    batch.write(NAMES)
    assert batch.run(concurrency=4) == 3
    assert set(batch.results()) == set(NAMES)
    failed = batch.results()["n7"]
    assert failed["error"]["code"] == "internal_error"
    assert failed["error"]["message"].startswith(type(error).__name__)
    assert (failed["error"]["line"], failed["response"]["status_code"]) == (8, 500)
    assert "19 answered, 1 failed" in capsys.readouterr().err


def test_bad_lines_alone_start_nothing_and_may_be_mended(batch: Batch, capsys: pytest.CaptureFixture[str]) -> None:
    batch.input.write_text("{\n" * 3)
    assert batch.run() == 3
    assert batch.engines.clients == []
    assert [json.loads(row)["error"]["line"] for row in batch.output.read_text().splitlines()] == [1, 2, 3]
    assert "0 answered, 3 failed" in capsys.readouterr().err
    batch.write(NAMES)
    assert batch.run() == 0
    assert batch.texts() == ALL


def test_a_byte_order_mark_is_no_part_of_the_first_line(batch: Batch) -> None:
    batch.write(NAMES)
    batch.input.write_bytes(b"\xef\xbb\xbf" + batch.input.read_bytes())
    assert batch.run() == 0
    assert batch.texts() == ALL


def test_a_file_written_for_another_name_runs_under_it(batch: Batch) -> None:
    row = request("a")
    row["body"]["model"] = "org/name"
    batch.input.write_text(json.dumps(row))
    assert batch.run() == 3
    assert batch.run(served_model_name="org/name") == 0
    assert batch.results()["a"]["response"]["body"]["model"] == "org/name"


def test_the_prompt_is_tokenized_once(batch: Batch, monkeypatch: pytest.MonkeyPatch) -> None:
    encoded: list[str] = []
    encode = Tokenizer.encode
    monkeypatch.setattr(
        Tokenizer, "encode", lambda self, text, *limit: (encoded.append(text), encode(self, text, *limit))[1]
    )
    batch.write(["a", "b"])
    assert batch.run() == 0
    assert sorted(text for text in encoded if text.startswith("say")) == ["say a", "say b"]
