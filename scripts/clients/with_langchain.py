"""``langchain-openai``: chats, streams, batches, tools, structured output, completions, the responses API."""

import asyncio
import sys

from langchain_core.messages import AIMessage, HumanMessage, SystemMessage, ToolMessage
from langchain_openai import ChatOpenAI, OpenAI
from tried import ANSWER, QUESTION, SCHEMA, TOOL, finish, tried

SETTINGS = {
    "model": "demo",
    "base_url": sys.argv[1] + "/v1",
    "api_key": "none",
    "temperature": 0,
    "max_tokens": 200,
    "max_retries": 0,
}
chat = ChatOpenAI(**SETTINGS)
MESSAGES = [SystemMessage("Be brief."), HumanMessage(QUESTION)]


@tried("invoke, with usage")
def _() -> None:
    answer = chat.invoke(MESSAGES)
    assert answer.content.endswith(ANSWER), answer
    assert answer.usage_metadata["output_tokens"] > 0
    assert answer.response_metadata["finish_reason"] == "stop"


@tried("stream")
def _() -> None:
    assert "".join(chunk.content for chunk in chat.stream(MESSAGES)).endswith(ANSWER)


@tried("batch, and asynchronous streams")
def _() -> None:
    assert all(answer.content for answer in chat.batch([MESSAGES] * 8))

    async def text() -> str:
        return "".join([chunk.content async for chunk in chat.astream(MESSAGES)])

    assert asyncio.run(text()).endswith(ANSWER)


@tried("a tool by name, and its result")
def _() -> None:
    tools = [{"type": "function", "function": TOOL}]
    answer = chat.bind_tools(tools, tool_choice="weather").invoke(MESSAGES, max_tokens=60)
    assert answer.tool_calls or answer.invalid_tool_calls
    call = {"name": "weather", "args": {"city": "Rome"}, "id": "1"}
    history = [HumanMessage("How is it?"), AIMessage("", tool_calls=[call]), ToolMessage("sunny", tool_call_id="1")]
    assert isinstance(chat.bind_tools(tools).invoke(history, max_tokens=10), AIMessage)


@tried("structured output")
def _() -> None:
    form = {"title": "person", "description": "a person", **SCHEMA}
    short = ChatOpenAI(**SETTINGS, extra_body={"reasoning_effort": "none"})
    assert set(short.with_structured_output(form, method="json_schema").invoke(MESSAGES)) == {"name", "age"}


@tried("completions")
def _() -> None:
    assert ANSWER in OpenAI(**SETTINGS | {"max_tokens": 64}).invoke(f"Question: {QUESTION}\nAnswer:")


@tried("the responses API")
def _() -> None:
    assert ChatOpenAI(**SETTINGS, use_responses_api=True).invoke(MESSAGES).text.endswith(ANSWER)


finish()
