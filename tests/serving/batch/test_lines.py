import json

import pytest

from splitrank.serving.batch.lines import error_line, parse_line, read_lines, result_line
from splitrank.serving.openai.errors import ApiError


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


def test_bad_lines_keep_their_number_and_the_first_of_two_names_counts() -> None:
    rows = [line("good"), b"", line("good", body={"prompt": "another"}), line(method="GET"), b"{", b" ", line("last")]
    lines, bad = read_lines(rows)
    assert [(good.custom_id, good.number) for good in lines] == [("good", 1), ("last", 7)]
    assert [(one.number, one.custom_id) for one in bad] == [(3, "good"), (4, "a"), (5, None)]
    assert [one.error.code for one in bad] == ["duplicate_custom_id", None, None]
    assert "also in line 1" in bad[0].error.message
    assert len({one.line_id for one in (*lines, *bad)}) == 5


def test_the_error_of_a_line_is_openais() -> None:
    _, [bad] = read_lines([b"", b'{"custom_id": "\\ud83d"}'])
    result = json.loads(error_line(bad, bad.error))
    message = "the line: a string holds the lone surrogate \\ud83d"
    assert result["error"] == {"code": None, "message": message, "param": None, "line": 2}
    assert result["custom_id"] == "\ud83d"
    assert result["response"]["status_code"] == 400
    assert result["response"]["body"]["error"]["message"] == message


def test_result_lines_have_openais_shape() -> None:
    request = parse_line(line("ä"))
    good = json.loads(result_line(request, 200, {"id": "cmpl-1", "choices": []}, None))
    response = {"status_code": 200, "request_id": "cmpl-1", "body": {"id": "cmpl-1", "choices": []}}
    assert good == {"id": request.line_id, "custom_id": "ä", "response": response, "error": None}
    bad = json.loads(result_line(request, 503, {"error": {}}, {"code": "queue_full", "message": "full"}))
    assert bad["response"]["status_code"] == 503
    assert bad["error"] == {"code": "queue_full", "message": "full"}
