"""/openapi.json and /docs: every route, field, bound and status, and answers that are what the document says."""

import json
from pathlib import Path
from typing import Any

import pytest

from splitrank.serving.openai import answers
from splitrank.serving.openai.types import ChatBody, CompletionBody
from tests.serving.http.test_api import CALL, CHAT, TOOL
from tests.support.front_fakes import Front
from tests.support.http_helpers import check_error, serving

PROMPT = {"prompt": "hi"}


async def document(front: Front) -> dict[str, Any]:
    response = await front.http.get("/openapi.json")
    assert response.status_code == 200
    whole: dict[str, Any] = response.json()
    return whole


def test_the_document(tmp_path: Path) -> None:
    async def work(front: Front) -> None:
        whole = await document(front)
        assert set(whole["paths"]) == {
            "/health", "/ready", "/metrics", "/stats", "/v1/models", "/v1/models/{model}", "/version",
            "/tokenize", "/detokenize", "/v1/chat/completions", "/v1/completions", "/v1/responses", "/v1/messages",
            "/v1/messages/count_tokens",
        }  # fmt: skip
        schemas = whole["components"]["schemas"]
        for name, body in (("ChatBody", ChatBody), ("CompletionBody", CompletionBody)):
            assert set(schemas[name]["properties"]) == set(body.__struct_fields__)
        fields = schemas["ChatBody"]["properties"]
        bounds = fields["temperature"]["anyOf"][0]
        assert (bounds["minimum"], bounds["maximum"]) == (0, 2)
        assert fields["top_p"]["anyOf"][0]["exclusiveMinimum"] == 0
        assert fields["stop"]["anyOf"][1]["maxItems"] == 16
        assert schemas["ChatBody"]["required"] == ["messages"]
        for path, methods in whole["paths"].items():
            for method, operation in methods.items():
                statuses = set(operation["responses"])
                assert "200" in statuses
                assert "422" not in statuses
                if method == "post":
                    assert statuses == {"200", "400", "401", "404", "408", "413", "415", "500", "503"}, path
        text = json.dumps(whole)
        for part in text.split('"$ref": "#/components/schemas/')[1:]:
            assert part.partition('"')[0] in schemas
        assert (await front.http.head("/health")).status_code == 200

    serving(tmp_path, work)


def test_the_document_needs_the_key(tmp_path: Path) -> None:
    async def work(front: Front) -> None:
        check_error(await front.http.get("/openapi.json"), 401)
        assert (await front.http.get("/openapi.json", headers={"x-api-key": "key"})).status_code == 200
        assert (await front.http.get("/docs")).status_code == 200  # it asks its reader for the key

    serving(tmp_path, work, api_key="key")


KINDS = {
    "/v1/chat/completions": (answers.ChatCompletion, answers.ChatCompletionChunk),
    "/v1/completions": (answers.Completion, answers.CompletionChunk),
}


@pytest.mark.parametrize(
    ("path", "body"),
    [
        ("/v1/chat/completions", CHAT),
        ("/v1/chat/completions", CHAT | {"tools": [TOOL]}),
        ("/v1/chat/completions", CHAT | {"logprobs": True, "top_logprobs": 2}),
        ("/v1/completions", PROMPT | {"logprobs": 1, "return_token_ids": True}),
        ("/v1/completions", PROMPT | {"stop": "l", "echo": True, "n": 2}),
        ("/v1/completions", PROMPT | {"logprobs": 2, "echo": True}),
    ],
)
def test_answers_are_what_it_says(tmp_path: Path, path: str, body: dict[str, Any]) -> None:
    async def work(front: Front) -> None:
        kind, chunk = KINDS[path]
        whole = await front.http.post(path, json=body)
        answer = answers.read_as(kind, whole.content)
        if "tools" in body:
            assert answer.choices[0].message.tool_calls[0].function.name == "look"
        options = {"stream": True, "stream_options": {"include_usage": True}}
        streamed = await front.http.post(path, json=body | options)
        *events, done, end = streamed.text.split("\n\n")
        assert (done, end) == ("data: [DONE]", "")
        assert len(events) > 3
        for event in events:
            answers.read_as(chunk, event.removeprefix("data: ").encode())

    serving(tmp_path, work, CALL, max_model_len=1000)


def test_small_answers_and_errors_are_what_it_says(tmp_path: Path) -> None:
    async def work(front: Front) -> None:
        for path, kind in (
            ("/health", answers.Status),
            ("/ready", answers.Status),
            ("/v1/models", answers.ModelList),
            ("/version", answers.Version),
            ("/v1/models/tiny", answers.Model),
            ("/v1/models/other", answers.Error),
            ("/nothing", answers.Error),
        ):
            answers.read_as(kind, (await front.http.get(path)).content)
        for body in ({}, {"prompt": 5}, {"prompt": "a", "n": 0}, {"prompt": "a", "never": 1}):
            response = await front.http.post("/v1/completions", json=body)
            assert response.status_code == 400
            answers.read_as(answers.Error, response.content)
        tokenized = await front.http.post("/tokenize", json={"prompt": "hi", "return_token_strs": True})
        assert answers.read_as(answers.Tokens, tokenized.content).token_strs == ["hi"]
        detokenized = await front.http.post("/detokenize", json={"tokens": tokenized.json()["tokens"]})
        assert answers.read_as(answers.Detokenized, detokenized.content).prompt == "hi"

    serving(tmp_path, work)
