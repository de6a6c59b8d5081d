"""Fields of vLLM's and SGLang's requests that are obeyed, and the server's defaults for them."""

import json
from pathlib import Path
from typing import Any

import pytest

from splitrank.serving.batch.config import GenerateConfig
from splitrank.serving.openai.errors import ApiError
from splitrank.serving.openai.parser import CHAT_URL, COMPLETIONS_URL, RequestParser
from splitrank.serving.openai.requests import ParsedRequest
from splitrank.serving.openai.settings import DEFAULT_SETTINGS, ApiSettings
from splitrank.serving.protocol.sampling_params import SamplingParams
from splitrank.serving.text.tokenizer import Tokenizer
from tests.support.front_fakes import make_info, make_tokenizer
from tests.support.service_helpers import complete, stream

PROMPTS: dict[str, dict[str, Any]] = {
    CHAT_URL: {"messages": [{"role": "user", "content": "hi"}]},
    COMPLETIONS_URL: {"prompt": "hi"},
}
ROOM = 100


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory: pytest.TempPathFactory) -> Tokenizer:
    return make_tokenizer(tmp_path_factory.mktemp("tokenizer"))


def parse(tokenizer: Tokenizer, url: str, settings: ApiSettings = DEFAULT_SETTINGS, **fields: Any) -> ParsedRequest:
    parser = RequestParser(tokenizer, make_info(tokenizer, ROOM), settings)
    return parser.parse(url, json.dumps(PROMPTS[url] | fields).encode())


def refused(tokenizer: Tokenizer, url: str, **fields: Any) -> ApiError:
    with pytest.raises(ApiError) as caught:
        parse(tokenizer, url, **fields)
    assert caught.value.status == 400
    return caught.value


def ids(request: ParsedRequest) -> list[int]:
    return request.prompts[0].token_ids


def test_only_the_last_tokens_of_a_prompt(tokenizer: Tokenizer) -> None:
    for url in PROMPTS:
        whole = ids(parse(tokenizer, url))
        assert ids(parse(tokenizer, url, truncate_prompt_tokens=1)) == whole[-1:]
        assert ids(parse(tokenizer, url, truncate_prompt_tokens=1000)) == whole
        assert refused(tokenizer, url, truncate_prompt_tokens=0).param == "truncate_prompt_tokens"
    far_too_long = [7] * 5000
    assert ids(parse(tokenizer, COMPLETIONS_URL, prompt=far_too_long, truncate_prompt_tokens=9)) == [7] * 9
    text = parse(tokenizer, COMPLETIONS_URL, prompt="a" * 5000 + "b", truncate_prompt_tokens=1, echo=True)
    assert text.prompts[0].text == "b"
    error = refused(tokenizer, COMPLETIONS_URL, prompt=far_too_long, truncate_prompt_tokens=200)
    assert error.code == "context_length_exceeded"


def test_how_a_chat_ends(tokenizer: Tokenizer) -> None:
    messages = [*PROMPTS[CHAT_URL]["messages"], {"role": "assistant", "content": "It is"}]
    asked = {"messages": messages, "add_generation_prompt": False}
    whole = tokenizer.render_chat(messages)
    assert tokenizer.encode(whole) == ids(parse(tokenizer, CHAT_URL, messages=messages))
    assert tokenizer.encode(whole.removesuffix("<|im_start|>assistant\n<think>\n")) == ids(
        parse(tokenizer, CHAT_URL, **asked)
    )
    opened = parse(tokenizer, CHAT_URL, **asked, continue_final_message=True)
    assert ids(opened) == tokenizer.encode(whole.partition("It is")[0] + "It is")
    assert not opened.form.thinking
    thought = [*messages[:1], {"role": "assistant", "content": "<think>\nIt is"}]
    assert parse(tokenizer, CHAT_URL, messages=thought, continue_final_message=True).form.thinking
    both = {"continue_final_message": True, "add_generation_prompt": True}
    assert refused(tokenizer, CHAT_URL, **both).param == "continue_final_message"


def test_minus_one_truncates_to_what_max_tokens_leaves_of_the_context(tokenizer: Tokenizer) -> None:
    far_too_long = [7] * 5000
    for fields, room in (({}, 1), ({"max_tokens": 30}, 30), ({"max_tokens": 0, "echo": True}, 1)):
        request = parse(tokenizer, COMPLETIONS_URL, prompt=far_too_long, truncate_prompt_tokens=-1, **fields)
        assert ids(request) == [7] * (ROOM - room)
        assert request.generations[0].params.max_tokens == room
    messages = [{"role": "user", "content": "a" * 5000}]
    request = parse(tokenizer, CHAT_URL, messages=messages, truncate_prompt_tokens=-1, max_completion_tokens=40)
    assert len(ids(request)) == ROOM - 40
    assert refused(tokenizer, CHAT_URL, truncate_prompt_tokens=-2).param == "truncate_prompt_tokens"
    error = refused(tokenizer, CHAT_URL, truncate_prompt_tokens=-1, max_tokens=ROOM)
    assert error.code == "context_length_exceeded"


def test_separate_reasoning(tokenizer: Tokenizer) -> None:
    assert parse(tokenizer, CHAT_URL, separate_reasoning=True) == parse(tokenizer, CHAT_URL)
    assert not parse(tokenizer, CHAT_URL, separate_reasoning=False).form.parts_thinking


def test_thoughts_that_stay_in_the_content_are_counted(tmp_path: Path) -> None:
    asked, text = PROMPTS[CHAT_URL] | {"max_tokens": 50}, "ab</think>\n\ncd"
    parted, kept = (complete(tmp_path, CHAT_URL, asked | {"separate_reasoning": one}, text) for one in (True, False))
    assert kept["choices"][0]["message"]["content"] == text
    counts = [answer["usage"]["completion_tokens_details"]["reasoning_tokens"] for answer in (parted, kept)]
    assert counts[0] == counts[1] > 0
    cut = complete(tmp_path, CHAT_URL, asked | {"separate_reasoning": False, "max_tokens": 1}, text)
    assert cut["choices"][0]["message"]["content"] == "ab"


def test_special_tokens_show_their_names_if_asked(tmp_path: Path) -> None:
    text = "a<|endoftext|>b"
    for fields, shown in (({}, "ab"), ({"skip_special_tokens": False}, text)):
        for url, prompt in PROMPTS.items():
            request = prompt | {"max_tokens": 9, "logprobs": 1 if url == COMPLETIONS_URL else True, **fields}
            request |= {"enable_thinking": False} if url == CHAT_URL else {}
            choice = complete(tmp_path, url, request, text)["choices"][0]
            assert shown == (choice["text"] if url == COMPLETIONS_URL else choice["message"]["content"])
            if url == COMPLETIONS_URL:
                assert choice["logprobs"]["text_offset"][:3] == ([0, 1, 14] if fields else [0, 1, 1])


def test_logprobs_may_name_tokens_by_id(tmp_path: Path) -> None:
    fields = {"return_tokens_as_token_ids": True, "return_token_ids": True, "max_tokens": 2}
    choice = complete(tmp_path, COMPLETIONS_URL, PROMPTS[COMPLETIONS_URL] | fields | {"logprobs": 1})["choices"][0]
    names = [f"token_id:{token_id}" for token_id in choice["token_ids"]]
    assert choice["logprobs"]["tokens"] == names
    assert [next(iter(top)) for top in choice["logprobs"]["top_logprobs"]] == names
    choice = complete(tmp_path, CHAT_URL, PROMPTS[CHAT_URL] | fields | {"logprobs": True})["choices"][0]
    assert [entry["token"] for entry in choice["logprobs"]["content"]] == names


def test_usage_in_every_chunk(tmp_path: Path) -> None:
    options = {"stream_options": {"include_usage": True, "continuous_usage_stats": True}}
    chunks = stream(tmp_path, COMPLETIONS_URL, PROMPTS[COMPLETIONS_URL] | options)
    counts = [chunk["usage"]["completion_tokens"] for chunk in chunks]
    assert counts == [1, 2, 3, 4, 5, 5]


# ------------------------------------------------------------------ defaults of the server


def settings(**options: Any) -> ApiSettings:
    return ApiSettings.of(GenerateConfig(input="a", output="b", **options))


def test_max_tokens_may_be_clipped(tokenizer: Tokenizer) -> None:
    clipping = settings(clip_max_tokens=True)
    for url in PROMPTS:
        assert refused(tokenizer, url, max_tokens=ROOM).code == "context_length_exceeded"
        request = parse(tokenizer, url, clipping, max_tokens=10**9)
        assert request.generations[0].params.max_tokens == ROOM - request.num_prompt_tokens
        assert parse(tokenizer, url, clipping, max_tokens=3).generations[0].params.max_tokens == 3


def test_template_variables_of_the_server(tokenizer: Tokenizer) -> None:
    off = settings(chat_template_kwargs='{"enable_thinking": false, "x": 1}')
    assert off.chat_template_kwargs == {"enable_thinking": False, "x": 1}
    assert not parse(tokenizer, CHAT_URL, off).form.thinking
    for fields in (
        {"enable_thinking": True},
        {"reasoning_effort": "low"},
        {"chat_template_kwargs": {"enable_thinking": True}},
    ):
        assert parse(tokenizer, CHAT_URL, off, **fields).form.thinking


@pytest.mark.parametrize("text", ["{", "[]", "1", '{"a": NaN}', '{"messages": []}', '{"enable_thinking": "no"}'])
def test_bad_template_variables_of_the_server(text: str) -> None:
    with pytest.raises(ValueError, match="chat_template_kwargs"):
        settings(chat_template_kwargs=text)


# ------------------------------------------------------------------ which tokens, and when


def params_of(tokenizer: Tokenizer, url: str = COMPLETIONS_URL, **fields: Any) -> SamplingParams:
    return parse(tokenizer, url, **fields).generations[0].params


def test_bad_words_are_banned_as_the_tokenizer_writes_them(tokenizer: Tokenizer) -> None:
    expected = [tokenizer.encode(text) for text in ("hello", " hello", "é", " é")]
    for url in PROMPTS:
        assert [*map(list, params_of(tokenizer, url, bad_words=["hello", " é"]).bad_words_token_ids)] == expected
        assert params_of(tokenizer, url, bad_words=[]).bad_words_token_ids == ()
        for bad in (["a", ""], [" "], ["\ud800"], ["a"] * 257, "a"):
            assert str(refused(tokenizer, url, bad_words=bad).param).startswith("bad_words")


def test_allowed_tokens(tokenizer: Tokenizer) -> None:
    assert params_of(tokenizer, allowed_token_ids=[5, 6, 5]).allowed_token_ids == (5, 6)
    assert params_of(tokenizer, allowed_token_ids=[]).allowed_token_ids == ()
    for bad in ([512], [-1], [True]):
        assert str(refused(tokenizer, COMPLETIONS_URL, allowed_token_ids=bad).param).startswith("allowed_token_ids")
    assert refused(tokenizer, COMPLETIONS_URL, allowed_token_ids=[5], guided_choice=["a"]).param == "allowed_token_ids"


def test_priority(tokenizer: Tokenizer) -> None:
    assert [params_of(tokenizer, priority=one).priority for one in (-3, 0, 9, None)] == [-3, 0, 9, 0]
    assert refused(tokenizer, COMPLETIONS_URL, priority=0.5).param == "priority"


@pytest.mark.parametrize("fields", [{"suffix": "x"}, {"best_of": 2}, {"use_beam_search": True}])
def test_what_is_not_supported_is_named(tokenizer: Tokenizer, fields: dict[str, Any]) -> None:
    error = refused(tokenizer, COMPLETIONS_URL, **fields)
    assert (error.param, error.code) == (next(iter(fields)), "unsupported_value")
