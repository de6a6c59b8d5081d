"""Log probabilities of prompts on the wire: echoed before those of the answer, and in vLLM's form."""

import json
import math
from pathlib import Path
from typing import Any

import msgspec
import pytest

from splitrank.serving.openai.answers import ChatCompletion, Completion, CompletionChunk
from splitrank.serving.openai.parser import CHAT_URL, COMPLETIONS_URL
from splitrank.serving.openai.service import OpenAIService
from splitrank.serving.protocol.messages import RequestOutput, TokenLogprobs
from splitrank.serving.protocol.sampling_params import SamplingParams
from splitrank.serving.text.text_engine import TextEngine
from tests.support.front_fakes import FakeClient
from tests.support.service_helpers import complete, stream, with_engine

# a é (in two tokens) <|im_end|> b: the scripted engine gives token n of the prompt the log probability -n.
PROMPT = {"prompt": "aé<|im_end|>b"}
NAMES = ["a", "bytes:\\xc3", "bytes:\\xa9", "<|im_end|>", "b"]
ECHO = PROMPT | {"echo": True, "logprobs": 1}


def choice(folder: Path, body: dict[str, Any]) -> dict[str, Any]:
    answer = complete(folder, COMPLETIONS_URL, body)
    msgspec.convert(answer, Completion)
    found: dict[str, Any] = answer["choices"][0]
    return found


def test_echo_with_logprobs(tmp_path: Path) -> None:
    found = choice(tmp_path, ECHO | {"max_tokens": 2})
    assert found["text"] == "aé<|im_end|>bhel"
    logprobs = found["logprobs"]
    assert logprobs["tokens"] == [*NAMES, "h", "el"]
    assert logprobs["token_logprobs"] == [None, -1, -2, -3, -4, -0.5, -0.5]
    assert logprobs["text_offset"] == [0, 1, 1, 2, 12, 13, 14]
    assert logprobs["top_logprobs"][0] is None
    assert list(logprobs["top_logprobs"][4].values()) == [-0.25, -4]  # the likeliest, and the prompt's own
    # As lm-eval looks whether a token was the likeliest.
    assert all(
        own <= max(top.values())
        for own, top in zip(logprobs["token_logprobs"][1:], logprobs["top_logprobs"][1:], strict=True)
    )


def test_of_the_prompt_alone(tmp_path: Path) -> None:
    answer = complete(tmp_path, COMPLETIONS_URL, ECHO | {"max_tokens": 0})
    (found,) = answer["choices"]
    assert (found["text"], found["finish_reason"]) == ("aé<|im_end|>b", "length")
    assert found["logprobs"]["tokens"] == NAMES
    assert (answer["usage"]["prompt_tokens"], answer["usage"]["completion_tokens"]) == (5, 0)


def test_a_prompt_of_one_token_has_none(tmp_path: Path) -> None:
    found = choice(tmp_path, {"prompt": "a", "echo": True, "logprobs": 1, "max_tokens": 0, "prompt_logprobs": 1})
    empty = {"tokens": ["a"], "token_logprobs": [None], "top_logprobs": [None], "text_offset": [0]}
    assert (found["logprobs"], found["prompt_logprobs"]) == (empty, [None])


@pytest.mark.parametrize("max_tokens", [0, 3])
@pytest.mark.parametrize("prompt", ["aé<|im_end|>b", "a"])
def test_a_stream_is_the_body_in_pieces(tmp_path: Path, prompt: str, max_tokens: int) -> None:
    body = ECHO | {"prompt": prompt, "max_tokens": max_tokens}
    whole = choice(tmp_path, body)
    chunks = stream(tmp_path, COMPLETIONS_URL, body)
    for chunk in chunks:
        msgspec.convert(chunk, CompletionChunk)
    parts = [chunk["choices"][0] for chunk in chunks]
    assert "".join(part["text"] for part in parts) == whole["text"]
    for name, values in whole["logprobs"].items():
        assert [value for part in parts if part["logprobs"] for value in part["logprobs"][name]] == values


def test_vllms_form(tmp_path: Path) -> None:
    found = choice(tmp_path, PROMPT | {"prompt_logprobs": 1, "max_tokens": 1})
    assert found["logprobs"] is None
    first, *others, last = found["prompt_logprobs"]
    assert first is None
    assert len(others) == 3
    token = next(iter(last))
    assert last[token] == {"logprob": -4, "rank": 2, "decoded_token": "b"}
    assert last["0"] == {"logprob": -0.25, "rank": 1, "decoded_token": "!"}
    assert [len(entry) for entry in choice(tmp_path, PROMPT | {"prompt_logprobs": 0})["prompt_logprobs"][1:]] == [1] * 4


def test_both_forms_have_as_many_as_each_asked_for(tmp_path: Path) -> None:
    found = choice(tmp_path, ECHO | {"logprobs": 0, "prompt_logprobs": 1, "max_tokens": 1})
    assert [len(top) for top in found["logprobs"]["top_logprobs"][1:5]] == [1] * 4
    assert [len(entry) for entry in found["prompt_logprobs"][1:]] == [2] * 4


def test_of_a_chat_they_stand_beside_the_choices(tmp_path: Path) -> None:
    chat = {"messages": [{"role": "user", "content": "hi"}], "prompt_logprobs": 0, "n": 2}
    answer = complete(tmp_path, CHAT_URL, chat)
    msgspec.convert(answer, ChatCompletion)
    first, *others = answer["prompt_logprobs"]
    assert first is None
    assert len(others) == answer["usage"]["prompt_tokens"] - 1


def test_an_impossible_token_has_a_number(tmp_path: Path) -> None:
    """Minus infinity is no JSON; null stands for a token that has no log probability, the prompt's first."""

    async def work(engine: TextEngine) -> list[Any]:
        def impossible(prompt: list[int], params: SamplingParams) -> list[RequestOutput]:
            one = TokenLogprobs(-math.inf, [3], [-math.inf], 2)
            return [RequestOutput("0", [65], [one], "length", prompt_logprobs=[one] * (len(prompt) - 1))]

        assert isinstance(engine.client, FakeClient)
        engine.client.script = impossible
        service = OpenAIService(engine)
        body = ECHO | {"prompt_logprobs": 1, "max_tokens": 1}
        answer = await service.complete(service.parse(COMPLETIONS_URL, json.dumps(body).encode()))
        return list(json.loads(msgspec.json.encode(answer["choices"])))

    [found] = with_engine(tmp_path, work)
    assert found["logprobs"]["token_logprobs"] == [None, *[-9999] * 5]
    assert all(value == -9999 for top in found["logprobs"]["top_logprobs"][1:] for value in top.values())
    assert all(one["logprob"] == -9999 for token in found["prompt_logprobs"][1:] for one in token.values())
