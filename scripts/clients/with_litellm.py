"""``litellm``: OpenAI's and Anthropic's forms through its one interface."""

import asyncio
import sys

import litellm
from tried import ANSWER, QUESTION, TOOL, finish, tried

URL = sys.argv[1]
MESSAGES = [{"role": "system", "content": "Be brief."}, {"role": "user", "content": QUESTION}]
COMMON = {"api_key": "none", "messages": MESSAGES, "temperature": 0, "max_tokens": 200, "num_retries": 0}
OPENAI = {**COMMON, "model": "openai/demo", "api_base": URL + "/v1"}
ANTHROPIC = {**COMMON, "model": "anthropic/demo", "api_base": URL}


def text_of(chunks: object) -> str:
    return "".join(chunk.choices[0].delta.content or "" for chunk in chunks)  # type: ignore[attr-defined]


@tried("completion, with thoughts apart")
def _() -> None:
    message = litellm.completion(**OPENAI).choices[0].message
    assert message.content.endswith(ANSWER)
    assert message.reasoning_content


@tried("completion, streamed")
def _() -> None:
    assert text_of(litellm.completion(**OPENAI, stream=True)).endswith(ANSWER)


@tried("acompletion, 8 at once")
def _() -> None:
    async def ask() -> list[object]:
        return await asyncio.gather(*(litellm.acompletion(**OPENAI) for _ in range(8)))

    assert all(answer.choices[0].message.content for answer in asyncio.run(ask()))


@tried("a tool by name")
def _() -> None:
    choice = {"type": "function", "function": {"name": "weather"}}
    tools = [{"type": "function", "function": TOOL}]
    answer = litellm.completion(**OPENAI | {"max_tokens": 60}, tools=tools, tool_choice=choice)
    assert answer.choices[0].message.tool_calls[0].function.name == "weather"


@tried("text_completion")
def _() -> None:
    body = {key: OPENAI[key] for key in ("model", "api_base", "api_key", "temperature")}
    prompt = f"Question: {QUESTION}\nAnswer:"
    body["model"] = "text-completion-openai/demo"
    assert ANSWER in litellm.text_completion(**body, prompt=prompt, max_tokens=64).choices[0].text


@tried("responses")
def _() -> None:
    body = {key: OPENAI[key] for key in ("model", "api_base", "api_key", "temperature")}
    assert litellm.responses(**body, input=QUESTION, max_output_tokens=200).output[-1].content[0].text.endswith(ANSWER)


@tried("Anthropic's messages, whole and streamed")
def _() -> None:
    assert litellm.completion(**ANTHROPIC).choices[0].message.content.endswith(ANSWER)
    assert text_of(litellm.completion(**ANTHROPIC, stream=True)).endswith(ANSWER)


@tried("errors are the package's own")
def _() -> None:
    try:
        litellm.completion(**OPENAI | {"max_tokens": 10**6})
    except litellm.BadRequestError:
        return
    raise AssertionError("it was taken")


finish()
