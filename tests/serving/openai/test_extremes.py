"""Values at the ends of what JSON can say: each is obeyed, or refused with 400; none is a crash, none is ignored."""

import json
from pathlib import Path
from typing import Any

import pytest

from splitrank.serving.openai.errors import ApiError
from splitrank.serving.openai.parser import CHAT_URL, COMPLETIONS_URL, RequestParser
from splitrank.serving.openai.requests import ParsedRequest
from splitrank.serving.text.tokenizer import Tokenizer
from tests.support.front_fakes import VOCAB_SIZE, make_info
from tests.support.tiny_tokenizer import write_tokenizer

DEMO = Path(__file__).parents[3] / "configs" / "demo"
MESSAGES = [{"role": "user", "content": "hi"}]
PROMPTS: dict[str, dict[str, Any]] = {CHAT_URL: {"messages": MESSAGES}, COMPLETIONS_URL: {"prompt": "hi"}}


@pytest.fixture(scope="module")
def parser(tmp_path_factory: pytest.TempPathFactory) -> RequestParser:
    """With the demo's template, which shows thoughts and tool calls."""
    folder = write_tokenizer(tmp_path_factory.mktemp("tokenizer"), VOCAB_SIZE)
    (folder / "chat_template.jinja").write_text((DEMO / "chat_template.jinja").read_text())
    tokenizer = Tokenizer.from_folder(folder)
    return RequestParser(tokenizer, make_info(tokenizer, max_model_len=20_000))


def parse(parser: RequestParser, url: str, **fields: Any) -> ParsedRequest:
    return parser.parse(url, json.dumps(PROMPTS[url] | fields).encode())


def status(parser: RequestParser, url: str, body: bytes) -> int:
    """200 or the refusal's; anything but a refusal is raised."""
    try:
        parser.parse(url, body)
    except ApiError as error:
        return error.status
    return 200


def refused(parser: RequestParser, url: str, **fields: Any) -> ApiError:
    with pytest.raises(ApiError) as caught:
        parse(parser, url, **fields)
    assert caught.value.status == 400
    json.dumps(caught.value.body()).encode("utf-8")  # it can be sent
    return caught.value


# ------------------------------------------------------------------ numbers

INTEGER_FIELDS = ("max_tokens", "min_tokens", "top_k", "seed", "n", "stop_token_ids")


@pytest.mark.parametrize("number", [2**63, 2**64 - 1, 2**64, 10**100, -(2**63) - 1, 10**4299 + 1, 10**4300 - 1])
@pytest.mark.parametrize("url", PROMPTS)
def test_integers_that_no_field_can_mean(parser: RequestParser, url: str, number: int) -> None:
    names = (*INTEGER_FIELDS, *(["max_completion_tokens", "top_logprobs"] if url == CHAT_URL else ["logprobs"]))
    for name in names:
        value: Any = [number] if name == "stop_token_ids" else number
        assert refused(parser, url, **{name: value}).param in (name, f"{name}[0]"), name
    if url == COMPLETIONS_URL:
        assert refused(parser, url, prompt=[number]).param == "prompt[0]"


@pytest.mark.parametrize("top_k", [-1, 0, VOCAB_SIZE, VOCAB_SIZE + 1, 2**63 - 1])
def test_a_top_k_of_the_whole_vocabulary_is_none(parser: RequestParser, top_k: int) -> None:
    for url in PROMPTS:
        assert parse(parser, url, top_k=top_k).generations[0].params.top_k == 0
        assert parse(parser, url, top_k=VOCAB_SIZE - 1).generations[0].params.top_k == VOCAB_SIZE - 1


@pytest.mark.parametrize("name", ["temperature", "top_p", "min_p", "presence_penalty", "repetition_penalty"])
def test_integers_beyond_all_floats(parser: RequestParser, name: str) -> None:
    for url in PROMPTS:
        assert refused(parser, url, **{name: 10**400}).param == name


# ------------------------------------------------------------------ arguments of past tool calls


def with_arguments(arguments: str) -> list[dict[str, Any]]:
    function = {"name": "add", "arguments": arguments}
    call = {"id": "c", "type": "function", "function": function}
    return [*MESSAGES, {"role": "assistant", "content": "", "tool_calls": [call]}, {"role": "tool", "content": "3"}]


@pytest.mark.parametrize(
    "arguments",
    [
        '{"a": "\\ud83d"}',
        '{"\\ud83d": 1}',
        '{"a": NaN}',
        '{"a": 1e999}',
        '{"a": ' + "9" * 5000 + "}",
        '{"a": 1, "a": 2}',
        '{"a": ' + "[" * 5000 + "]" * 5000 + "}",
        '{"a": ' + '{"b":' * 990 + "1" + "}" * 990 + "}",
        '{"a": ',
        '"a"',
        "[1]",
        "no JSON",
    ],
    ids=range(12),
)
def test_arguments_that_are_no_object_do_not_leave_a_chat_stuck(parser: RequestParser, arguments: str) -> None:
    """A model wrote them, or they were cut off: each later turn has them, and the model sees them as they are."""
    as_argument = json.dumps({"arguments": json.loads(arguments) if arguments == "[1]" else arguments})
    shown = parse(parser, CHAT_URL, messages=with_arguments(as_argument))
    assert parse(parser, CHAT_URL, messages=with_arguments(arguments)) == shown


def test_arguments_nested_in_the_body_itself(parser: RequestParser) -> None:
    for depth in (100, 900, 990, 5000):
        nested = b"[" * depth + b"]" * depth
        body = json.dumps({"messages": with_arguments("@")}).encode().replace(b'"@"', b'{"a": ' + nested + b"}")
        assert status(parser, CHAT_URL, body) in ((200,) if depth == 100 else (400,) if depth == 5000 else (200, 400))


def test_whole_characters_in_arguments_are_fine(parser: RequestParser) -> None:
    parse(parser, CHAT_URL, messages=with_arguments('{"a": "\\ud83e\\udd8a", "b": 1e308, "c": [[[{}]]]}'))


def test_a_template_variable_of_the_client_cannot_crash(parser: RequestParser) -> None:
    for value in ("\ud83d", ["\ud83d"], 10**4000, None, {"a": [1]}):
        body = json.dumps({"messages": MESSAGES, "chat_template_kwargs": {"enable_thinking": value, "x": value}})
        assert status(parser, CHAT_URL, body.encode()) in (200, 400)


# ------------------------------------------------------------------ fields that nobody obeys


@pytest.mark.parametrize(
    ("name", "value", "harmless"),
    [
        ("never_heard_of", 1, None),
        ("max_new_tokens", 5, None),
        ("repeat_penalty", 1.1, 1.0),
        ("grammar", "root ::= x", None),
        ("cache_salt", "abc", None),
        ("dry_multiplier", 0.8, 0),
        ("xtc_probability", 0.5, 0.0),
        ("mirostat", 2, 0),
        ("thinking_budget", 100, None),
        ("best_of", 2, 1),
    ],
)
def test_a_field_that_would_be_ignored_is_refused(
    parser: RequestParser, name: str, value: object, harmless: object
) -> None:
    for url in PROMPTS:
        error = refused(parser, url, **{name: value})
        assert (error.param, error.code) == (name, "unsupported_value")
        assert error.message.startswith(f"{name} is not supported")
        assert parse(parser, url, **{name: harmless}) == parse(parser, url)


def test_a_misspelt_field_is_told_the_right_name(parser: RequestParser) -> None:
    assert refused(parser, CHAT_URL, temprature=0).message == "temprature is not supported; did you mean temperature?"
    assert refused(parser, CHAT_URL, **{"x" * 10_000: 0}).param == "x" * 40


@pytest.mark.parametrize("url", PROMPTS)
def test_labels_are_taken(parser: RequestParser, url: str) -> None:
    labels: dict[str, Any] = {
        "user": "me", "metadata": {"a": "b"}, "store": True, "service_tier": "auto", "safety_identifier": "x",
        "prompt_cache_key": "k", "prompt_cache_retention": "24h", "parallel_tool_calls": True,
    }  # fmt: skip
    assert parse(parser, url, **labels) == parse(parser, url)


def test_stream_options_that_would_be_ignored(parser: RequestParser) -> None:
    for name in ("include_obfuscation", "never_heard_of"):
        error = refused(parser, CHAT_URL, stream=True, stream_options={"include_usage": True, name: True})
        assert error.param == f"stream_options.{name}"
    options = {"include_usage": True, "include_obfuscation": False}
    assert parse(parser, CHAT_URL, stream=True, stream_options=options).include_usage


@pytest.mark.parametrize("extra", [{"function_call": {"name": "f", "arguments": "{}"}}, {"prefix": True}])
def test_fields_of_a_message_that_would_change_the_prompt(parser: RequestParser, extra: dict[str, Any]) -> None:
    messages = [*MESSAGES, {"role": "assistant", "content": "a", **extra}, *MESSAGES]
    assert refused(parser, CHAT_URL, messages=messages).param == f"messages[1].{next(iter(extra))}"


def test_an_answer_that_is_sent_back_as_it_came(parser: RequestParser) -> None:
    """Clients append the whole message object of an answer to the conversation."""
    answer = {"role": "assistant", "content": "a"}
    extra = {"refusal": None, "annotations": [], "audio": None, "function_call": None}
    assert parse(parser, CHAT_URL, messages=[*MESSAGES, answer | extra, *MESSAGES]) == parse(
        parser, CHAT_URL, messages=[*MESSAGES, answer, *MESSAGES]
    )


# ------------------------------------------------------------------ two names of one thing


def test_thinking_is_switched_by_either_name(parser: RequestParser) -> None:
    for value in (True, False):
        by_variable = parse(parser, CHAT_URL, chat_template_kwargs={"enable_thinking": value})
        assert parse(parser, CHAT_URL, enable_thinking=value) == by_variable
    assert parse(parser, CHAT_URL, enable_thinking=False) != parse(parser, CHAT_URL, enable_thinking=True)
    both = {"enable_thinking": True, "chat_template_kwargs": {"enable_thinking": False}}
    assert refused(parser, CHAT_URL, **both).param == "enable_thinking"
    assert refused(parser, CHAT_URL, enable_thinking="no").param == "enable_thinking"
    assert refused(parser, COMPLETIONS_URL, enable_thinking=False).param == "enable_thinking"


def test_reasoning_is_read_by_either_name(parser: RequestParser) -> None:
    def asked(**thoughts: str) -> ParsedRequest:
        call = with_arguments("{}")[1]["tool_calls"]
        thought = {"role": "assistant", "content": "a", "tool_calls": call, **thoughts}
        return parse(parser, CHAT_URL, messages=[*MESSAGES, thought, {"role": "tool", "content": "3"}])

    assert asked(reasoning="why") == asked(reasoning_content="why") == asked(reasoning="why", reasoning_content="why")
    assert asked(reasoning="why").num_prompt_tokens > asked().num_prompt_tokens
    with pytest.raises(ApiError, match="differ"):
        asked(reasoning="why", reasoning_content="because")


def test_a_byte_order_mark_is_no_part_of_the_body(parser: RequestParser) -> None:
    body = json.dumps(PROMPTS[CHAT_URL]).encode()
    assert parser.parse(CHAT_URL, b"\xef\xbb\xbf" + body) == parser.parse(CHAT_URL, body)
