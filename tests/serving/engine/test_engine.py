"""Engine, client and links as real processes, with a model that checks every step (``tests/support/fake_rank.py``)."""

import asyncio
import random
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import aclosing, asynccontextmanager

import pytest

from splitrank.serving.launch.engine_client import EngineClient, EngineDeadError
from splitrank.serving.launch.output_stream import OutputStream
from splitrank.serving.protocol.messages import AddRequest, FrontToEngine, RequestOutput
from splitrank.serving.protocol.sampling_params import SamplingParams
from splitrank.serving.protocol.wire import encode
from tests.support.fake_model import expected_tokens, small_spec

FAKE_RANK = "tests.support.fake_rank"


@asynccontextmanager
async def engine(**changes: object) -> AsyncIterator[EngineClient]:
    client = await EngineClient.start(small_spec(**changes), FAKE_RANK)
    try:
        yield client
    finally:
        await client.close()


async def generate(client: EngineClient, prompt: list[int], **params: object) -> list[RequestOutput]:
    return [output async for output in client.stream(prompt, SamplingParams(**params))]  # type: ignore[arg-type]


def tokens(outputs: list[RequestOutput]) -> list[int]:
    return [token for output in outputs for token in output.token_ids]


async def until(condition: Callable[[], bool], timeout_s: float = 20.0) -> None:
    async def wait() -> None:
        while not condition():  # noqa: ASYNC110 - what is awaited happens in another process
            await asyncio.sleep(0.01)

    await asyncio.wait_for(wait(), timeout_s)


def is_through(client: EngineClient, num_tokens: int) -> bool:
    """The latest stats are of a time after all these tokens, and nothing runs any more."""
    stats = client.stats
    if stats is None or stats.generated_tokens < num_tokens:
        return False
    return stats.num_running + stats.num_waiting + stats.num_preempted == 0


def has_aborted(client: EngineClient) -> bool:
    return client.stats is not None and client.stats.aborts > 0


def run(test: Callable[[], Awaitable[None]]) -> None:
    async def bounded() -> None:
        await asyncio.wait_for(test(), 90)

    asyncio.run(bounded())


def test_a_request_without_a_seed_gets_one_that_no_start_repeats(monkeypatch: pytest.MonkeyPatch) -> None:
    sent: list[AddRequest] = []
    post = EngineClient._post

    def watched(client: EngineClient, message: FrontToEngine) -> None:
        if isinstance(message, AddRequest):
            sent.append(message)
        post(client, message)

    monkeypatch.setattr(EngineClient, "_post", watched)

    async def start_and_ask() -> None:
        async with engine() as client:
            for seed in (None, None, 7):
                await generate(client, [1, 2], max_tokens=1, seed=seed)

    run(start_and_ask)
    run(start_and_ask)
    seeds = [message.params.seed for message in sent]
    assert seeds[2] == seeds[5] == 7
    assert len({None, *seeds}) == 1 + 4 + 1


@pytest.mark.parametrize(
    ("pp", "tp"),
    [(1, 1), pytest.param(2, 1, marks=pytest.mark.full), (3, 1), pytest.param(4, 1, marks=pytest.mark.full), (2, 2)],
)
def test_many_requests_with_preemption_and_aborts(pp: int, tp: int) -> None:
    """Hundreds at one rank. Ten times as many as run at once, else: a step costs as much as it has ranks."""
    rng = random.Random(pp)
    jobs = []
    heard_by_all: list[int] = []
    for index in range(200 if pp * tp == 1 else 60):
        prompt = [rng.randrange(50) for _ in range(rng.choice([1, 5, 8, 20, 30]))]
        jobs.append((prompt, rng.randint(1, 30), rng.randint(1, 5) if index % 4 == 0 else None))

    async def one(client: EngineClient, prompt: list[int], max_tokens: int, leave_after: int | None) -> None:
        heard: list[int] = []
        async with aclosing(client.stream(prompt, SamplingParams(max_tokens=max_tokens))) as outputs:
            async for output in outputs:
                heard += output.token_ids
                if leave_after is not None and len(heard) >= leave_after:
                    break
        heard_by_all.append(len(heard))
        whole = expected_tokens(prompt, max_tokens, 50)
        num_wanted = len(whole[: leave_after or max_tokens])
        assert heard == whole[: max(num_wanted, len(heard))]  # the last output it read may have several tokens

    async def leave_at_once(client: EngineClient) -> None:
        task = asyncio.create_task(generate(client, [1] * 20, max_tokens=20))
        await asyncio.sleep(0)  # it has asked
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)

    async def test() -> None:
        async with engine(pp_size=pp, tp_size=tp, partition=(1,) * pp, num_pages=18) as client:
            assert client.reports == [f"rank {rank}: fake" for rank in range(pp * tp)]
            await asyncio.gather(*(one(client, *job) for job in jobs), *(leave_at_once(client) for _ in range(9)))
            # How many aborts count depends on who is faster; on a busy machine the last may come after all tokens.
            await until(lambda: is_through(client, sum(heard_by_all)) and has_aborted(client))
            stats = client.stats
            assert stats is not None
            assert (stats.free_pages, stats.free_slots) == (18, 6)
            assert stats.preemptions > 0
            assert (stats.num_running, stats.num_waiting, stats.num_preempted) == (0, 0, 0)

    run(test)


def test_a_cancelled_stream_is_aborted() -> None:
    async def test() -> None:
        async with engine(max_model_len=10_000, num_pages=2500) as client:
            task = asyncio.create_task(generate(client, [1], max_tokens=9000))
            await until(lambda: client.stats is not None and client.stats.num_running == 1)
            task.cancel()
            await asyncio.gather(task, return_exceptions=True)
            await until(lambda: client.stats is not None and client.stats.aborts == 1)
            assert client.stats is not None
            assert client.stats.num_running == 0

    run(test)


def test_the_ranks_hear_of_the_last_end_too() -> None:
    """One request of one token takes a step; a second, empty one tells the ranks to forget it."""

    async def test() -> None:
        async with engine(pp_size=2, partition=(1, 1)) as client:
            for number in range(1, 4):
                await generate(client, [9], max_tokens=1)
                await until(lambda number=number: client.stats is not None and client.stats.steps == 2 * number)

    run(test)


def test_a_refusal_is_an_output_and_the_engine_lives_on() -> None:
    async def test() -> None:
        async with engine() as client:
            [refusal] = await generate(client, [99])
            assert (refusal.finish_reason, refusal.error_code) == ("error", "invalid_request")
            assert tokens(await generate(client, [9], max_tokens=3)) == expected_tokens([9], 3, 50)

    run(test)


def test_a_late_reader_gets_all_that_has_come_in_one_output() -> None:
    async def test() -> None:
        async with engine() as client, aclosing(client.stream([1], SamplingParams(max_tokens=30))) as stream:
            first = await anext(stream)
            await until(lambda: is_through(client, 30))
            outputs = [first, *[output async for output in stream]]
            assert len(outputs) <= 2  # one, where even the first look was late
            assert (tokens(outputs), outputs[-1].finish_reason) == (expected_tokens([1], 30, 50), "length")

    run(test)


def test_a_closed_client_ends_its_streams_and_refuses_new_ones() -> None:
    async def test() -> None:
        async with engine(max_model_len=10_000, num_pages=2500) as client:
            stream = client.stream([1], SamplingParams(max_tokens=9000))
            await anext(stream)
            await asyncio.gather(client.close(), client.close())
            with pytest.raises(EngineDeadError, match="closed"):
                async for _ in stream:
                    pass
            with pytest.raises(EngineDeadError, match="closed"):
                await generate(client, [1])
            assert not client.died.is_set()  # nothing died

    run(test)


def test_a_message_that_cannot_be_read_ends_its_own_request_only() -> None:
    """The front sends no such thing; if it did, the engine and everybody else's request must go on."""

    async def test() -> None:
        async with engine(max_model_len=2000, num_pages=500) as client:
            others = asyncio.create_task(generate(client, [1], max_tokens=300))
            ends = client._streams["bad"] = OutputStream()
            bad = {"type": "AddRequest", "request_id": "bad", "prompt_token_ids": [1], "params": {"max_tokens": 16.0}}
            for message in (b"", b"\xc1", encode([1]), encode({"type": "AddRequest", "request_id": 7}), encode(bad)):
                client._socket.send(message)
            end = await asyncio.wait_for(ends.get(), 30)
            assert end is not None
            assert (end.finish_reason, end.error_code, end.request_id) == ("error", "invalid_request", "bad")
            assert "Expected `int`, got `float` - at `$.params.max_tokens`" in str(end.error)
            assert tokens(await others) == expected_tokens([1], 300, 50)
            assert tokens(await generate(client, [2], max_tokens=5)) == expected_tokens([2], 5, 50)

    run(test)


def test_stats_tell_of_stages_and_ranks() -> None:
    async def work() -> None:
        async with engine(pp_size=2) as client:
            await generate(client, [1, 2, 3], max_tokens=4)
            await until(lambda: is_through(client, 4))
            stats = client.stats
            assert stats is not None
            assert stats.num_stages == 2
            assert 0 < stats.stage_busy_s < 2 * stats.uptime_s
            assert stats.bubble_s > 0  # one request cannot fill two stages
            assert sum(stats.queue_time_counts) == 1
            assert 0 < stats.queue_time_s < stats.uptime_s
            assert len(stats.ranks) == 2
            assert all(0 <= one.heartbeat_age_s <= stats.uptime_s for one in stats.ranks)

    run(work)
