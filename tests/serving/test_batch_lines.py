import json
from pathlib import Path

import pytest

from splitrank.serving.batch.lines import check_lines, parse_line, result_line
from splitrank.serving.openai.errors import ApiError
from splitrank.serving.openai.parser import RequestParser
from tests.serving.offline_fakes import prepared_model


def line(custom_id: object = "a", **changes: object) -> bytes:
    fields = {"custom_id": custom_id, "method": "POST", "url": "/v1/completions", "body": {"prompt": "hello"}}
    return json.dumps({**fields, **changes}).encode()


@pytest.mark.parametrize(
    ("raw", "reason"),
    [
        (b"{", "the line is not valid JSON"),
        (b"[]", "the line must be a JSON object"),
        (b"\xff", "not valid UTF-8"),
        (line().replace(b'"hello"', b"NaN"), "NaN"),
        (line().replace(b"{", b'{"url": "/v1/completions", ', 1), "duplicate key"),
        (line(None), "custom_id"),
        (line(""), "custom_id"),
        (line(3), "custom_id"),
        (line(method="GET"), "method must be 'POST', not 'GET'"),
        (line(url="/v1/embeddings"), "url must be one of .* not '/v1/embeddings'"),
        (line(url=["/v1/completions"]), "url must be one of"),
        (line(body="hello"), "body is missing"),
        (line(body={"prompt": "x", "stream": True}), "cannot stream"),
    ],
)
def test_bad_shapes(raw: bytes, reason: str) -> None:
    with pytest.raises(ApiError, match=reason):
        parse_line(raw)


def test_the_line_id_is_of_the_content() -> None:
    reordered = (
        b'{ "url": "/v1/completions", "body": {"seed":1,"prompt":"hello"}, "method": "POST","custom_id":"\\u0061"}'
    )
    assert parse_line(reordered).line_id == parse_line(line(body={"prompt": "hello", "seed": 1})).line_id
    others = [line("b"), line(body={"prompt": "hallo"}), line(body={"prompt": "hello", "seed": 1})]
    assert len({parse_line(raw).line_id for raw in [line(), *others]}) == 4


def test_every_bad_line_is_named_with_the_model_only(tmp_path: Path) -> None:
    prepared = prepared_model(tmp_path / "model", max_model_len=30)
    parser = RequestParser(prepared.tokenizer, prepared.info)
    path = tmp_path / "in.jsonl"
    rows = [
        line("good"),
        b"",
        line("good"),
        line("chat", url="/v1/chat/completions", body={"messages": [{"role": "user", "content": "hi"}]}),
        line("type", body={"prompt": "x", "max_tokens": "5"}),
        line("long", body={"prompt": "x " * 40}),
        line("model", body={"prompt": "x", "model": "other"}),
        line("tools", body={"prompt": "x", "suffix": "y"}),
    ]
    num_checked = 0

    def count() -> None:
        nonlocal num_checked
        num_checked += 1

    lines, problems = check_lines(path, rows, parser.parse, count)
    assert [good.custom_id for good in lines] == ["good", "chat"]
    expected = [(3, "also in line 1"), (5, "max_tokens"), (6, "30 tokens"), (7, "other"), (8, "suffix")]
    assert len(problems) == len(expected)
    for problem, (number, word) in zip(problems, expected, strict=True):
        assert problem.startswith(f"{path}:{number}: ")
        assert word in problem
        assert "\n" not in problem
    assert num_checked == len(rows)


def test_result_lines_have_openais_shape() -> None:
    request = parse_line(line("ä"))
    good = json.loads(result_line(request, 200, {"id": "cmpl-1", "choices": []}, None))
    response = {"status_code": 200, "request_id": "cmpl-1", "body": {"id": "cmpl-1", "choices": []}}
    assert good == {"id": request.line_id, "custom_id": "ä", "response": response, "error": None}
    bad = json.loads(result_line(request, 503, {"error": {}}, {"code": "queue_full", "message": "full"}))
    assert bad["response"]["status_code"] == 503
    assert bad["error"] == {"code": "queue_full", "message": "full"}
