"""Answers of a form that was asked for, by the real client from a real server over two stages."""

import json
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import openai
import pytest

from tests.e2e.servers import Server

QUESTION = [{"role": "user", "content": "Mia has 14 shells and finds 5 more. How many shells does she have?"}]
SCHEMA: dict[str, Any] = {
    "type": "object",
    "properties": {
        "unit": {"type": "string", "maxLength": 12},
        "counts": {"type": "array", "items": {"type": "integer", "minimum": 0, "maximum": 999}, "maxItems": 3},
        "sure": {"enum": ["yes", "no"]},
    },
    "required": ["unit", "counts", "sure"],
    "additionalProperties": False,
}
STRICT = {"type": "json_schema", "json_schema": {"name": "count", "schema": SCHEMA, "strict": True}}
DIRECT = {"enable_thinking": False}


def ask(server: Server, **options: Any) -> Any:
    given = {"model": server.model, "messages": QUESTION, "max_tokens": 400, "temperature": 0, **options}
    return server.client.chat.completions.create(**given)


def check_schema(text: str) -> None:
    value = json.loads(text)
    assert list(value) == ["unit", "counts", "sure"]
    assert all(type(count) is int and 0 <= count <= 999 for count in value["counts"])
    assert len(value["unit"]) <= 12
    assert len(value["counts"]) <= 3
    assert value["sure"] in ("yes", "no")


@pytest.mark.parametrize("sampling", [{}, {"temperature": 1.5, "seed": 3}], ids=["greedy", "wild"])
def test_json_of_a_schema(server: Server, sampling: dict[str, Any]) -> None:
    choice = ask(server, response_format=STRICT, extra_body=DIRECT, **sampling).choices[0]
    assert choice.finish_reason == "stop"
    check_schema(choice.message.content)


def test_the_form_begins_behind_the_thoughts(server: Server) -> None:
    free = ask(server).choices[0].message
    held = ask(server, response_format=STRICT).choices[0].message
    assert held.reasoning_content == free.reasoning_content
    check_schema(held.content)
    chunks = list(ask(server, response_format=STRICT, stream=True))
    deltas = [chunk.choices[0].delta for chunk in chunks]
    assert "".join(delta.content or "" for delta in deltas) == held.content


def test_other_forms(server: Server) -> None:
    forms = [
        {"guided_choice": ["19 shells", "5 shells"]},
        {"guided_regex": "[0-9]{1,2} shells"},
        {"structured_outputs": {"grammar": 'root ::= "1" [0-9] | "none"'}},
    ]
    answers = [ask(server, extra_body=DIRECT | form).choices[0].message.content for form in forms]
    assert answers[0] in ("19 shells", "5 shells")
    assert answers[1].removesuffix(" shells").isdigit()
    assert answers[2] == "none" or (answers[2][0] == "1" and len(answers[2]) == 2)
    raw = {"model": "demo", "prompt": "7 * 6 =", "temperature": 0, "extra_body": {"guided_regex": " [0-9]{1,3} apples"}}
    assert server.client.completions.create(**raw).choices[0].text.endswith(" apples")


def test_requests_beside_it_get_the_same_tokens(server: Server) -> None:
    free = ask(server, extra_body=DIRECT, max_tokens=60).choices[0].message.content
    held = ask(server, response_format=STRICT, extra_body=DIRECT).choices[0].message.content
    with ThreadPoolExecutor(6) as pool:
        wanted: list[dict[str, Any]] = [{"max_tokens": 60}, {"response_format": STRICT}] * 3
        answers = list(pool.map(lambda asked: ask(server, extra_body=DIRECT, **asked), wanted))
    assert [answer.choices[0].message.content for answer in answers] == [free, held] * 3


def test_a_form_that_is_none_is_400_with_the_reason(server: Server) -> None:
    wrong = {"type": "json_schema", "json_schema": {"name": "x", "schema": {"type": "objct"}}}
    with pytest.raises(openai.BadRequestError, match="objct"):
        ask(server, response_format=wrong)
    assert server.http.get("/ready").status_code == 200


def test_the_client_parses_into_its_own_types(server: Server) -> None:
    from pydantic import BaseModel

    class Count(BaseModel):
        sure: bool
        number: int | None

    answer = server.client.chat.completions.parse(
        model="demo", messages=QUESTION, response_format=Count, temperature=0, extra_body=DIRECT
    )
    assert isinstance(answer.choices[0].message.parsed, Count)


TOOLS = [
    {
        "type": "function",
        "function": {
            "name": "count",
            "parameters": {
                "type": "object",
                "properties": {
                    "number": {"type": "integer", "minimum": 0, "maximum": 99},
                    "unit": {"type": "string", "pattern": "^[a-z]{1,9}$"},
                },
                "required": ["number", "unit"],
            },
        },
    },
    {"type": "function", "function": {"name": "give_up"}},
]


def check_call(function: Any) -> None:
    arguments = json.loads(function.arguments)
    if function.name == "give_up":
        assert arguments == {}
        return
    assert (function.name, list(arguments)) == ("count", ["number", "unit"])
    assert 0 <= arguments["number"] <= 99
    assert 1 <= len(arguments["unit"]) <= 9


def test_a_tool_that_must_be_called(server: Server) -> None:
    """A model that was never trained on tools calls one, behind its thoughts, with arguments of the schema."""
    asked = {"tools": TOOLS, "tool_choice": "required", "parallel_tool_calls": False}
    (whole,) = ask(server, **asked).choices
    assert (whole.finish_reason, whole.message.content) == ("tool_calls", None)
    (call,) = whole.message.tool_calls
    check_call(call.function)
    deltas = [chunk.choices[0].delta for chunk in ask(server, stream=True, **asked)]
    arguments = [one.function.arguments for delta in deltas for one in delta.tool_calls or []]
    assert "".join(arguments) == call.function.arguments


def test_an_agent_of_the_other_kind_must_call_a_tool(server: Server) -> None:
    tools = [{"name": one["function"]["name"], "input_schema": one["function"].get("parameters", {})} for one in TOOLS]
    body = {"model": "demo", "messages": QUESTION, "max_tokens": 200, "tools": tools, "temperature": 0}
    answer = server.http.post("/v1/messages", json=body | {"tool_choice": {"type": "tool", "name": "give_up"}}).json()
    assert answer["stop_reason"] == "tool_use"
    assert [block["name"] for block in answer["content"] if block["type"] == "tool_use"] == ["give_up"]
