"""/tokenize and /detokenize say what the engine would be given."""

import json
from typing import Any

import pytest

from splitrank.serving.openai.errors import ApiError
from splitrank.serving.openai.parser import CHAT_URL, DETOKENIZE_URL, TOKENIZE_URL, RequestParser
from splitrank.serving.openai.requests import DirectAnswer, ParsedRequest
from tests.support.front_fakes import VOCAB_SIZE, make_info, make_tokenizer

MESSAGES = [{"role": "user", "content": "hi"}]


@pytest.fixture(scope="module")
def parser(tmp_path_factory: pytest.TempPathFactory) -> RequestParser:
    tokenizer = make_tokenizer(tmp_path_factory.mktemp("tokenizer"))
    return RequestParser(tokenizer, make_info(tokenizer))


def ask(parser: RequestParser, url: str, **fields: Any) -> dict[str, Any]:
    answer = parser.parse(url, json.dumps(fields).encode())
    assert isinstance(answer, DirectAnswer)
    return answer.body


def test_text_there_and_back(parser: RequestParser) -> None:
    text = "h\u00e9<|im_end|>"
    answer = ask(parser, TOKENIZE_URL, prompt=text, return_token_strs=True)
    assert answer["token_strs"] == ["h", "\ufffd", "\ufffd", "<|im_end|>"]
    assert (answer["count"], answer["max_model_len"]) == (4, 100)
    assert ask(parser, DETOKENIZE_URL, tokens=answer["tokens"]) == {"prompt": text}
    assert ask(parser, TOKENIZE_URL, prompt=text, model="tiny")["token_strs"] is None
    assert ask(parser, TOKENIZE_URL, prompt="1" * 5000)["count"] == 5000  # more than the context holds


@pytest.mark.parametrize(
    "fields",
    [
        {},
        {"chat_template_kwargs": {"enable_thinking": False}},
        {"add_generation_prompt": False},
        {"tools": [{"type": "function", "function": {"name": "f"}}]},
    ],
)
def test_a_conversation_is_the_chat_s_prompt(parser: RequestParser, fields: dict[str, Any]) -> None:
    request = parser.parse(CHAT_URL, json.dumps({"messages": MESSAGES, "max_tokens": 1, **fields}).encode())
    assert isinstance(request, ParsedRequest)
    assert ask(parser, TOKENIZE_URL, messages=MESSAGES, **fields)["tokens"] == request.prompts[0].token_ids


@pytest.mark.parametrize(
    ("url", "fields", "param"),
    [
        (TOKENIZE_URL, {}, "prompt"),
        (TOKENIZE_URL, {"prompt": "a", "messages": MESSAGES}, "prompt"),
        (TOKENIZE_URL, {"prompt": ["a"]}, "prompt"),
        (TOKENIZE_URL, {"promt": "a"}, "promt"),
        (DETOKENIZE_URL, {}, "tokens"),
        (DETOKENIZE_URL, {"tokens": "a"}, "tokens"),
        (DETOKENIZE_URL, {"tokens": [VOCAB_SIZE]}, "tokens"),
        (DETOKENIZE_URL, {"tokens": [-1]}, "tokens[0]"),
        (DETOKENIZE_URL, {"tokens": [1], "model": "gpt-4"}, "model"),
    ],
)
def test_refusals(parser: RequestParser, url: str, fields: dict[str, Any], param: str) -> None:
    with pytest.raises(ApiError) as caught:
        ask(parser, url, **fields)
    assert (caught.value.status, caught.value.param) == (404 if param == "model" else 400, param)
