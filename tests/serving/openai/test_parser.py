"""What a request may say: every refusal is a 4xx that names the field, and nothing known is ignored."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from splitrank.serving.openai.errors import ApiError
from splitrank.serving.openai.parser import CHAT_URL, COMPLETIONS_URL, RequestParser
from splitrank.serving.openai.requests import ParsedRequest
from splitrank.serving.protocol.sampling_params import SamplingParams
from tests.support.front_fakes import VOCAB_SIZE, make_info, make_tokenizer

MESSAGES = [{"role": "user", "content": "hi"}]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("tokenizer")


@pytest.fixture
def parser(folder: Path) -> RequestParser:
    tokenizer = make_tokenizer(folder)
    return RequestParser(tokenizer, make_info(tokenizer))


def chat(parser: RequestParser, **fields: Any) -> ParsedRequest:
    return parser.parse(CHAT_URL, json.dumps({"messages": MESSAGES, **fields}).encode())


def complete(parser: RequestParser, **fields: Any) -> ParsedRequest:
    return parser.parse(COMPLETIONS_URL, json.dumps({"prompt": "hi", **fields}).encode())


def refused(parser: RequestParser, url: str, body: bytes) -> ApiError:
    with pytest.raises(ApiError) as caught:
        parser.parse(url, body)
    return caught.value


# ------------------------------------------------------------------ JSON


@pytest.mark.parametrize(
    ("body", "said"),
    [
        (b"", "not valid JSON"),
        (b"{", "not valid JSON"),
        (b"[]", "must be a JSON object"),
        (b'"text"', "must be a JSON object"),
        (b"\xff\xfe{}", "not valid UTF-8"),
        (b'{"prompt": "a", "temperature": NaN}', "NaN is not a JSON number"),
        (b'{"prompt": "a", "temperature": -Infinity}', "-Infinity is not a JSON number"),
        (b'{"prompt": "a", "temperature": 1e999}', "too large"),
        (b'{"prompt": "a", "seed": ' + b"9" * 5000 + b"}", "value has 5000 digits"),
        (b'{"prompt": "a", "prompt": "b"}', "duplicate key 'prompt'"),
        (b'{"prompt": "a", "x": {"y": 1, "y": 2}}', "duplicate key 'y'"),
        (b'{"prompt": "a\\ud800"}', "lone surrogate \\ud800"),
        (b'{"prompt": "a", "\\udc00": 1}', "lone surrogate \\udc00"),
        (b'{"prompt":' + b"[" * 100_000 + b"]" * 100_000 + b"}", "nested too deeply"),
    ],
)
def test_bad_json(parser: RequestParser, body: bytes, said: str) -> None:
    error = refused(parser, COMPLETIONS_URL, body)
    assert error.status == 400
    assert said in error.message
    assert "sys." not in error.message  # no advice to whoever runs Python


def test_a_pair_of_surrogates_is_one_character(parser: RequestParser) -> None:
    request = parser.parse(COMPLETIONS_URL, b'{"prompt": "\\ud83e\\udd8a", "echo": true}')
    assert request.prompts[0].text == "🦊"


# ------------------------------------------------------------------ types and ranges


@pytest.mark.parametrize(
    ("fields", "param"),
    [
        ({"temperature": "1"}, "temperature"),
        ({"temperature": True}, "temperature"),
        ({"temperature": 2.1}, "temperature"),
        ({"temperature": -0.1}, "temperature"),
        ({"top_p": 0}, "top_p"),
        ({"top_p": 1.5}, "top_p"),
        ({"top_k": -2}, "top_k"),
        ({"top_k": 1.5}, "top_k"),
        ({"min_p": 2}, "min_p"),
        ({"presence_penalty": 3}, "presence_penalty"),
        ({"frequency_penalty": -3}, "frequency_penalty"),
        ({"repetition_penalty": 0}, "repetition_penalty"),
        ({"max_tokens": "5"}, "max_tokens"),
        ({"max_tokens": True}, "max_tokens"),
        ({"max_tokens": 0}, "max_tokens"),
        ({"max_tokens": -1}, "max_tokens"),
        ({"min_tokens": 9, "max_tokens": 8}, "min_tokens"),
        ({"seed": 2**63}, "seed"),
        ({"seed": 1.5}, "seed"),
        ({"n": 0}, "n"),
        ({"n": 9}, "n"),
        ({"stop": ""}, "stop"),
        ({"stop": ["a", ""]}, "stop"),
        ({"stop": ["a"] * 17}, "stop"),
        ({"stop": [1]}, "stop[0]"),
        ({"stop_token_ids": [VOCAB_SIZE]}, "stop_token_ids"),
        ({"stop_token_ids": ["1"]}, "stop_token_ids[0]"),
        ({"logit_bias": {"a": 1}}, "logit_bias"),
        ({"logit_bias": {"-1": 1}}, "logit_bias"),
        ({"logit_bias": {str(VOCAB_SIZE): 1}}, "logit_bias"),
        ({"logit_bias": {"1": 101}}, "logit_bias"),
        ({"stream": "yes"}, "stream"),
        ({"stream_options": {"include_usage": True}}, "stream_options"),
        ({"model": 5}, "model"),
        ({"user": 5}, "user"),
    ],
)
def test_bad_values_of_both_endpoints(parser: RequestParser, fields: dict[str, Any], param: str) -> None:
    for url, prompt in ((CHAT_URL, {"messages": MESSAGES}), (COMPLETIONS_URL, {"prompt": "hi"})):
        error = refused(parser, url, json.dumps(prompt | fields).encode())
        assert (error.status, error.param) == (400, param)
        assert error.body()["error"]["type"] == "invalid_request_error"


@pytest.mark.parametrize(
    ("fields", "param"),
    [
        ({"messages": None}, "messages"),
        ({"messages": "hi"}, "messages"),
        ({"messages": []}, "messages"),
        ({"messages": [{"content": "hi"}]}, "messages[0]"),
        ({"messages": [{"role": "ghost", "content": "hi"}]}, "messages[0].role"),
        ({"messages": [{"role": "user", "content": 5}]}, "messages[0].content"),
        ({"messages": [{"role": "user", "content": [{"type": "text"}]}]}, "messages[0].content[0].text"),
        ({"messages": [{"role": "user", "content": [{"type": "image_url"}]}]}, "messages[0].content[0].type"),
        ({"top_logprobs": 2}, "top_logprobs"),
        ({"logprobs": True, "top_logprobs": 21}, "top_logprobs"),
        ({"logprobs": 1}, "logprobs"),
        ({"chat_template_kwargs": {"messages": []}}, "chat_template_kwargs"),
        ({"chat_template_kwargs": {"enable_thinking": "no"}}, "chat_template_kwargs"),
        ({"chat_template_kwargs": "x"}, "chat_template_kwargs"),
    ],
)
def test_bad_chat_values(parser: RequestParser, fields: dict[str, Any], param: str) -> None:
    error = refused(parser, CHAT_URL, json.dumps({"messages": MESSAGES} | fields).encode())
    assert (error.status, error.param) == (400, param)


@pytest.mark.parametrize(
    ("fields", "param"),
    [
        ({"prompt": None}, "prompt"),
        ({"prompt": 5}, "prompt"),
        ({"prompt": ""}, "prompt"),
        ({"prompt": []}, "prompt"),
        ({"prompt": [[]]}, "prompt"),
        ({"prompt": ["a", ""]}, "prompt"),
        ({"prompt": ["a", 1]}, "prompt"),
        ({"prompt": ["a", [1]]}, "prompt"),
        ({"prompt": [True]}, "prompt[0]"),
        ({"prompt": [1, VOCAB_SIZE]}, "prompt"),
        ({"prompt": [-1]}, "prompt"),
        ({"prompt": ["a"] * 257}, "prompt"),
        ({"logprobs": 21}, "logprobs"),
        ({"logprobs": True}, "logprobs"),
        ({"max_tokens": 0}, "max_tokens"),
        ({"max_tokens": -1, "echo": True}, "max_tokens"),
        ({"prompt_logprobs": -1}, "prompt_logprobs"),
        ({"prompt_logprobs": 21}, "prompt_logprobs"),
        ({"prompt_logprobs": 1, "stream": True}, "prompt_logprobs"),
    ],
)
def test_bad_completion_values(parser: RequestParser, fields: dict[str, Any], param: str) -> None:
    error = refused(parser, COMPLETIONS_URL, json.dumps({"prompt": "hi"} | fields).encode())
    assert (error.status, error.param) == (400, param)


def test_a_missing_prompt_is_named(parser: RequestParser) -> None:
    assert refused(parser, COMPLETIONS_URL, b"{}").param == "prompt"
    assert refused(parser, CHAT_URL, b"{}").param == "messages"


# ------------------------------------------------------------------ unsupported


@pytest.mark.parametrize(
    ("fields", "harmless"),
    [
        ({"functions": [{}]}, {"functions": None}),
        ({"modalities": ["audio"]}, {"modalities": ["text"]}),
        ({"audio": {}}, {"audio": None}),
        ({"chat_template": "{{ 1 }}"}, {"chat_template": None}),
        ({"length_penalty": True}, {"length_penalty": 1.0}),
    ],
)
def test_unsupported_chat_values(parser: RequestParser, fields: dict[str, Any], harmless: dict[str, Any]) -> None:
    error = refused(parser, CHAT_URL, json.dumps({"messages": MESSAGES} | fields).encode())
    assert (error.status, error.param, error.code) == (400, next(iter(fields)), "unsupported_value")
    assert next(iter(fields)) in error.message
    chat(parser, **harmless)


@pytest.mark.parametrize("fields", [{"best_of": 2}, {"suffix": "x"}, {"max_completion_tokens": 5}, {"regex": "a"}])
def test_unsupported_completion_values(parser: RequestParser, fields: dict[str, Any]) -> None:
    error = refused(parser, COMPLETIONS_URL, json.dumps({"prompt": "hi"} | fields).encode())
    assert (error.status, error.param, error.code) == (400, next(iter(fields)), "unsupported_value")


def test_harmless_values_are_taken(parser: RequestParser) -> None:
    assert chat(parser, user="me", best_of=1, stop=[], never_heard_of=None) == chat(parser)


def test_unknown_model_and_url(parser: RequestParser) -> None:
    error = refused(parser, COMPLETIONS_URL, b'{"model": "gpt-4", "prompt": 7}')
    assert (error.status, error.code, error.param) == (404, "model_not_found", "model")
    assert refused(parser, "/v1/embeddings", b"{}").status == 404
    assert complete(parser, model="tiny") == complete(parser)


# ------------------------------------------------------------------ lengths


def test_prompt_longer_than_the_context(parser: RequestParser) -> None:
    error = refused(parser, COMPLETIONS_URL, json.dumps({"prompt": [1] * 120}).encode())
    assert (error.status, error.code, error.param) == (400, "context_length_exceeded", "prompt")
    assert "maximum context length is 100 tokens, but your prompt contains 120 tokens" in error.message
    assert refused(parser, COMPLETIONS_URL, json.dumps({"prompt": [1] * 100}).encode()).code == error.code
    long_chat = json.dumps({"messages": [{"role": "user", "content": "1" * 200}]}).encode()
    assert refused(parser, CHAT_URL, long_chat).param == "messages"


def test_prompt_and_max_tokens_beyond_the_context(parser: RequestParser) -> None:
    error = refused(parser, COMPLETIONS_URL, json.dumps({"prompt": [1] * 90, "max_tokens": 11}).encode())
    assert error.code == "context_length_exceeded"
    assert "maximum context length is 100 tokens" in error.message
    assert "your prompt contains 90 tokens, and max_tokens is 11" in error.message
    assert complete(parser, prompt=[1] * 90, max_tokens=10).generations[0].params.max_tokens == 10


def test_default_lengths(parser: RequestParser) -> None:
    assert complete(parser).generations[0].params.max_tokens == 16
    assert complete(parser, prompt=[1] * 95).generations[0].params.max_tokens == 5
    request = chat(parser)
    assert request.generations[0].params.max_tokens == 100 - request.num_prompt_tokens
    assert chat(parser, max_tokens=7, max_completion_tokens=3).generations[0].params.max_tokens == 3


# ------------------------------------------------------------------ what comes out


def test_every_parameter_arrives(parser: RequestParser) -> None:
    fields = {
        "max_tokens": 9, "min_tokens": 2, "temperature": 0, "top_k": -1, "top_p": 0.5, "min_p": 0.1, "seed": 7,
        "repetition_penalty": 1.5, "presence_penalty": 1, "frequency_penalty": -1, "logit_bias": {"5": -100},
        "stop": "end", "stop_token_ids": [3], "ignore_eos": True, "include_stop_str_in_output": True,
    }  # fmt: skip
    expected = SamplingParams(
        max_tokens=9, min_tokens=2, temperature=0.0, top_k=0, top_p=0.5, min_p=0.1, seed=7,
        repetition_penalty=1.5, presence_penalty=1.0, frequency_penalty=-1.0, logit_bias={5: -100.0},
        stop=("end",), stop_token_ids=(3,), ignore_eos=True, include_stop_str_in_output=True, logprobs=4,
    )  # fmt: skip
    assert complete(parser, **fields, logprobs=4).generations[0].params == expected
    assert chat(parser, **fields, logprobs=True, top_logprobs=4).generations[0].params == expected
    assert chat(parser, logprobs=True).generations[0].params.logprobs == 0
    assert chat(parser, logprobs=False).generations[0].params.logprobs is None


def test_defaults_come_from_request_then_checkpoint_then_openai(folder: Path) -> None:
    tokenizer = make_tokenizer(folder)
    parser = RequestParser(tokenizer, make_info(tokenizer, temperature=0.6, top_k=20))
    params = complete(parser, temperature=0.1).generations[0].params
    assert (params.temperature, params.top_k, params.top_p) == (0.1, 20, 1.0)
    assert complete(parser, temperature=None).generations[0].params.temperature == 0.6
    assert complete(parser, top_k=0).generations[0].params.top_k == 0


def test_prompts_times_n(parser: RequestParser) -> None:
    request = complete(parser, prompt=["hi", [5, 6]][:1] * 2, n=3, seed=11)
    assert [generation.index for generation in request.generations] == [0, 1, 2, 3, 4, 5]
    assert [generation.prompt for generation in request.generations] == [0, 0, 0, 1, 1, 1]
    seeds = [generation.params.seed for generation in request.generations]
    assert seeds[0] == seeds[3] == 11
    assert len(set(seeds)) == 3
    assert all(seed is not None and -(2**63) <= seed < 2**63 for seed in seeds)
    assert request.num_prompt_tokens == 2 * len(request.prompts[0].token_ids)
    assert [g.params.seed for g in complete(parser, n=2).generations] == [None, None]


def test_more_choices_than_places_can_never_be_answered(folder: Path) -> None:
    tokenizer = make_tokenizer(folder)
    parser = RequestParser(tokenizer, replace(make_info(tokenizer), max_open_requests=6))
    assert len(complete(parser, prompt=["hi"] * 3, n=2).generations) == 6
    for fields, param in (({"prompt": ["hi"] * 7}, "prompt"), ({"prompt": ["hi"] * 4, "n": 2}, "n"), ({"n": 7}, "n")):
        error = refused(parser, COMPLETIONS_URL, json.dumps({"prompt": "hi"} | fields).encode())
        assert (error.status, error.param) == (400, param)
        assert "6 places of this server, running and queued" in error.message


def test_prompt_forms(parser: RequestParser) -> None:
    def ids(prompt: Any) -> list[list[int]]:
        return [prompt.token_ids for prompt in complete(parser, prompt=prompt).prompts]

    assert ids([5, 6]) == [[5, 6]]
    assert ids([[5, 6], [7]]) == [[5, 6], [7]]
    assert ids(["hi", "ho"]) == [*ids("hi"), *ids("ho")]
    assert complete(parser, prompt=ids("hi"), echo=True).prompts[0].text == "hi"


def test_enable_thinking_reaches_the_template(parser: RequestParser) -> None:
    request = chat(parser, chat_template_kwargs={"enable_thinking": False})
    assert request.num_prompt_tokens > chat(parser).num_prompt_tokens
