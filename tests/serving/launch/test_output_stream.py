"""The queue between the engine's messages and a request: what waits is joined, in order, and nothing is lost."""

import asyncio
from collections.abc import Awaitable, Callable

import msgspec

from splitrank.serving.launch.output_stream import OutputStream
from splitrank.serving.protocol.messages import RequestOutput, TokenLogprobs


def run(test: Callable[[OutputStream], Awaitable[None]]) -> None:
    async def bounded() -> None:
        await asyncio.wait_for(test(OutputStream()), 30)

    asyncio.run(bounded())


def output(*tokens: int, **fields: object) -> RequestOutput:
    return RequestOutput("7", list(tokens), **fields)  # type: ignore[arg-type]


def test_what_has_come_together_is_one_output() -> None:
    async def test(stream: OutputStream) -> None:
        logprobs = [TokenLogprobs(-float(token), [token], [-1.0]) for token in range(3)]
        stream.put(output(prompt_logprobs=logprobs[:2]))
        stream.put(output(1, logprobs=logprobs[:1], num_cached_tokens=64, prompt_logprobs=logprobs[2:]))
        stream.put(output(2, logprobs=logprobs[1:2]))
        stream.put(output(3, logprobs=logprobs[2:], finish_reason="stop", stop_token_id=3))
        joined = output(1, 2, 3, logprobs=logprobs, finish_reason="stop", stop_token_id=3, num_cached_tokens=64)
        joined = msgspec.structs.replace(joined, prompt_logprobs=logprobs)
        assert await stream.get() == joined

    run(test)


def test_a_reader_in_time_gets_each_output_as_it_is() -> None:
    async def test(stream: OutputStream) -> None:
        outputs = [output(1, num_cached_tokens=64), output(2), output(3, finish_reason="length")]
        for one in outputs:
            reader = asyncio.create_task(stream.get())
            await asyncio.sleep(0)
            assert not reader.done()
            stream.put(one)
            assert await reader is one

    run(test)


def test_an_error_comes_after_the_tokens_before_it() -> None:
    async def test(stream: OutputStream) -> None:
        error = output(finish_reason="error", error="bad numbers", error_code="invalid_numbers")
        for one in (output(1), output(2), error):
            stream.put(one)
        assert await stream.get() == output(1, 2)
        assert await stream.get() is error

    run(test)


def test_a_closed_stream_gives_what_waits_and_then_none() -> None:
    async def test(stream: OutputStream) -> None:
        stream.put(output(1))
        stream.close()
        assert await stream.get() == output(1)
        assert await stream.get() is None
        assert await stream.get() is None

    run(test)


def test_closing_wakes_the_reader() -> None:
    async def test(stream: OutputStream) -> None:
        reader = asyncio.create_task(stream.get())
        await asyncio.sleep(0)
        stream.close()
        assert await reader is None

    run(test)


def test_a_cancelled_reader_loses_nothing() -> None:
    async def test(stream: OutputStream) -> None:
        reader = asyncio.create_task(stream.get())
        await asyncio.sleep(0)
        stream.put(output(1))  # it is woken and cancelled in one turn
        reader.cancel()
        await asyncio.gather(reader, return_exceptions=True)
        assert await stream.get() == output(1)

    run(test)
