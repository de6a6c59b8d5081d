"""A front that is late gets several tokens as one output. Its answers are the same as if it had been in time."""

import json
import random
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import msgspec
import pytest

from splitrank.serving.launch.output_stream import OutputStream, token_by_token
from splitrank.serving.openai.dialects import MESSAGES_URL, RESPONSES_URL
from splitrank.serving.openai.parser import CHAT_URL
from splitrank.serving.openai.service import OpenAIService
from splitrank.serving.protocol.messages import RequestOutput
from splitrank.serving.protocol.sampling_params import SamplingParams
from splitrank.serving.text.text_engine import TextEngine
from tests.support.front_fakes import FakeClient
from tests.support.service_helpers import with_engine

ARGUMENTS = "<parameter=a>\n5\n</parameter>\n<parameter=note>\n  x\n</parameter>\n"
ADDED = f"<tool_call>\n<function=add>\n{ARGUMENTS}</function>\n</tool_call>"
ANSWER = f"hm\n</think>\n\nFirst.\n{ADDED}\nThen this.\n{ADDED}\n{ADDED}\nEnd."
PARAMETERS = {"type": "object", "properties": {"a": {"type": "integer"}, "note": {"type": "string"}}}
FUNCTION = {"name": "add", "parameters": PARAMETERS}
MESSAGES = [{"role": "user", "content": "hi"}]
BODIES: dict[str, dict[str, Any]] = {
    CHAT_URL: {
        "messages": MESSAGES,
        "tools": [{"type": "function", "function": FUNCTION}],
        "logprobs": True,
    },
    RESPONSES_URL: {
        "input": "hi",
        "tools": [{"type": "function", **FUNCTION}],
        "include": ["message.output_text.logprobs"],
    },
    MESSAGES_URL: {
        "messages": MESSAGES,
        "tools": [{"name": "add", "input_schema": PARAMETERS}],
        "thinking": {"type": "enabled"},
        "max_tokens": 600,
    },
}


async def joined(outputs: list[RequestOutput], draw: random.Random) -> list[RequestOutput]:
    """As ``OutputStream`` joins them for a reader who is late by a random number of tokens."""
    stream, late = OutputStream(), []
    while outputs:
        for _ in range(min(len(outputs), draw.choice([1, 2, 5, 20, 60, 300]))):
            stream.put(outputs.pop(0))
        output = await stream.get()
        assert output is not None
        late.append(output)
    return late


def without_ids(value: Any) -> Any:
    if isinstance(value, dict):
        return {name: without_ids(one) for name, one in value.items() if name not in ("id", "call_id", "created_at")}
    return [without_ids(one) for one in value] if isinstance(value, list) else value


def answers(folder: Path, url: str) -> Iterator[Any]:
    async def work(engine: TextEngine) -> list[Any]:
        assert isinstance(engine.client, FakeClient)
        script, found = engine.client.script, []
        service = OpenAIService(engine)
        request = service.parse(url, json.dumps(BODIES[url]).encode())
        in_time = script([], request.generations[0].params)
        for seed in range(12):
            outputs = await joined([*in_time], random.Random(seed)) if seed else in_time

            def late(prompt: list[int], params: SamplingParams, late: Any = outputs) -> list[RequestOutput]:
                return list(late)

            engine.client.script = late
            found.append(without_ids(json.loads(msgspec.json.encode(await service.complete(request)))))
        return found

    yield from with_engine(folder, work, ANSWER, max_model_len=1000)


@pytest.mark.parametrize("url", BODIES)
def test_an_answer_does_not_depend_on_how_late_the_front_is(tmp_path: Path, url: str) -> None:
    in_time, *late = answers(tmp_path, url)
    in_time.pop("created", None)
    for one in late:
        one.pop("created", None)
        assert one == in_time


def test_single_tokens_keep_what_a_joined_output_holds() -> None:
    output = RequestOutput("7", [1, 2, 3], None, "stop", 3, num_cached_tokens=64, digests=[b"a", b"b", b"c"])
    assert list(token_by_token(output)) == [
        RequestOutput("7", [1], num_cached_tokens=64, digests=[b"a"]),
        RequestOutput("7", [2], num_cached_tokens=64, digests=[b"b"]),
        RequestOutput("7", [3], None, "stop", 3, num_cached_tokens=64, digests=[b"c"]),
    ]
    for whole in (RequestOutput("7", []), RequestOutput("7", [1], None, "length")):
        assert list(token_by_token(whole)) == [whole]
