"""The ``openai`` package: chats, completions, responses, streams, tools, structured output, errors."""

import asyncio
import json
import sys

import openai
from pydantic import BaseModel
from tried import ANSWER, QUESTION, SCHEMA, TOOL, finish, tried

URL = sys.argv[1] + "/v1"
client = openai.OpenAI(base_url=URL, api_key="none", max_retries=0, timeout=120)
MESSAGES = [{"role": "system", "content": "Be brief."}, {"role": "user", "content": QUESTION}]
CHAT = {"model": "demo", "messages": MESSAGES, "temperature": 0, "max_tokens": 200}


@tried("models")
def _() -> None:
    assert [model.id for model in client.models.list()] == ["demo"]
    assert client.models.retrieve("demo").id == "demo"


@tried("chat, thoughts apart, usage, request id")
def _() -> None:
    answer = client.chat.completions.create(**CHAT)
    message = answer.choices[0].message
    assert message.content.endswith(ANSWER), message
    assert message.reasoning_content
    assert answer.usage.total_tokens == answer.usage.prompt_tokens + answer.usage.completion_tokens
    assert answer.usage.completion_tokens_details.reasoning_tokens > 0
    assert answer._request_id


@tried("chat, streamed, with usage")
def _() -> None:
    chunks = list(client.chat.completions.create(**CHAT, stream=True, stream_options={"include_usage": True}))
    text = "".join(chunk.choices[0].delta.content or "" for chunk in chunks if chunk.choices)
    assert text.endswith(ANSWER), text
    assert chunks[-1].usage.completion_tokens > 0
    assert [chunk.choices[0].finish_reason for chunk in chunks if chunk.choices][-1] == "stop"


@tried("chat, the streaming helper")
def _() -> None:
    with client.chat.completions.stream(**CHAT) as stream:
        for _ in stream:
            pass
        assert stream.get_final_completion().choices[0].message.content.endswith(ANSWER)


@tried("chat, log probabilities")
def _() -> None:
    answer = client.chat.completions.create(**CHAT | {"max_tokens": 4}, logprobs=True, top_logprobs=3)
    assert len(answer.choices[0].logprobs.content[0].top_logprobs) == 3


@tried("chat, several choices, seeds, stop, penalties")
def _() -> None:
    settings = {"n": 3, "seed": 5, "stop": ["."], "presence_penalty": 0.5, "frequency_penalty": 0.5, "temperature": 1}
    first, second = (client.chat.completions.create(**CHAT | settings) for _ in range(2))
    assert len(first.choices) == 3
    assert [one.message for one in first.choices] == [one.message for one in second.choices]


@tried("a tool by name, called and streamed")
def _() -> None:
    tools = {"tools": [{"type": "function", "function": TOOL}]}
    tools["tool_choice"] = {"type": "function", "function": {"name": "weather"}}
    answer = client.chat.completions.create(**CHAT | {"max_tokens": 60}, **tools)
    assert answer.choices[0].message.tool_calls[0].function.name == "weather"
    parts = list(client.chat.completions.create(**CHAT | {"max_tokens": 60}, **tools, stream=True))
    calls = [call for part in parts for call in part.choices[0].delta.tool_calls or ()]
    assert calls[0].function.name == "weather"


@tried("a tool's result in the history")
def _() -> None:
    call = {"id": "1", "type": "function", "function": {"name": "weather", "arguments": '{"city": "Rome"}'}}
    history = [
        {"role": "user", "content": "How is it in Rome?"},
        {"role": "assistant", "content": None, "tool_calls": [call]},
        {"role": "tool", "tool_call_id": "1", "content": "sunny"},
    ]
    tools = [{"type": "function", "function": TOOL}]
    assert client.chat.completions.create(**CHAT | {"messages": history, "max_tokens": 10}, tools=tools).choices


@tried("structured output by schema")
def _() -> None:
    form = {"type": "json_schema", "json_schema": {"name": "person", "schema": SCHEMA, "strict": True}}
    answer = client.chat.completions.create(**CHAT, response_format=form, reasoning_effort="none")
    assert set(json.loads(answer.choices[0].message.content)) == {"name", "age"}


@tried("structured output by a pydantic model")
def _() -> None:
    class Sum(BaseModel):
        total: bool

    answer = client.chat.completions.parse(**CHAT, response_format=Sum, reasoning_effort="none")
    assert isinstance(answer.choices[0].message.parsed.total, bool)


@tried("completions, whole and streamed")
def _() -> None:
    body = {"model": "demo", "prompt": f"Question: {QUESTION}\nAnswer:", "max_tokens": 64, "temperature": 0}
    whole = client.completions.create(**body).choices[0].text
    assert ANSWER in whole
    assert "".join(chunk.choices[0].text for chunk in client.completions.create(**body, stream=True)) == whole
    assert client.completions.create(**body | {"prompt": [[5, 6], [7]], "max_tokens": 2}).choices[1].index == 1


@tried("responses, whole and streamed")
def _() -> None:
    body = {"model": "demo", "input": QUESTION, "temperature": 0, "max_output_tokens": 200}
    whole = client.responses.create(**body)
    assert whole.output_text.endswith(ANSWER)
    events = list(client.responses.create(**body, stream=True))
    assert events[0].type == "response.created"
    assert events[-1].response.output_text == whole.output_text
    with client.responses.stream(**body) as stream:
        assert stream.until_done().get_final_response().output_text == whole.output_text


@tried("errors are the package's own")
def _() -> None:
    for changed, expected in (
        ({"temperature": 9}, openai.BadRequestError),
        ({"model": "other"}, openai.NotFoundError),
        ({"max_tokens": 10**6}, openai.BadRequestError),
        ({"messages": []}, openai.BadRequestError),
    ):
        try:
            client.chat.completions.create(**CHAT | changed)
        except expected:
            continue
        raise AssertionError(f"{changed} was taken")


@tried("50 streams at once, half of them given up")
def _() -> None:
    async def one(number: int) -> str:
        async with openai.AsyncOpenAI(base_url=URL, api_key="none", max_retries=0, timeout=300) as own:
            stream = await own.chat.completions.create(**CHAT, stream=True)
            text = ""
            async for chunk in stream:
                text += chunk.choices[0].delta.content or ""
                if number % 2 and text:
                    await stream.close()
                    return ""
            return text

    async def all_of_them() -> list[str]:
        return await asyncio.gather(*map(one, range(50)))

    texts = [text for text in asyncio.run(all_of_them()) if text]
    assert len(texts) == 25
    assert sum(text.endswith(ANSWER) for text in texts) >= 23  # bf16: a batch may change a word


finish()
