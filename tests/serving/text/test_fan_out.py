import asyncio

import pytest

from splitrank.serving.text.fan_out import fan_out


def test_every_item_once_in_order_and_never_more_than_the_limit() -> None:
    started: list[int] = []
    open_now = most_open = 0

    async def work(item: int) -> None:
        nonlocal open_now, most_open
        started.append(item)
        open_now += 1
        most_open = max(most_open, open_now)
        for _ in range(item % 5):
            await asyncio.sleep(0)
        open_now -= 1

    asyncio.run(fan_out(range(100), 7, work))
    assert started == list(range(100))
    assert most_open == 7


def test_an_error_ends_the_others_and_comes_out_as_it_is() -> None:
    cancelled: list[int] = []

    async def work(item: int) -> None:
        if item == 3:
            raise KeyError("item 3")
        try:
            await asyncio.Event().wait()
        except asyncio.CancelledError:
            cancelled.append(item)
            raise

    with pytest.raises(KeyError, match="item 3"):
        asyncio.run(fan_out(range(100), 4, work))
    assert sorted(cancelled) == [0, 1, 2]


def test_nothing_to_do() -> None:
    async def work(item: int) -> None:
        raise AssertionError(item)

    asyncio.run(fan_out([], 3, work))


def test_cancelling_it_cancels_the_work() -> None:
    ended: list[int] = []

    async def work(item: int) -> None:
        try:
            await asyncio.Event().wait()
        finally:
            ended.append(item)

    async def main() -> None:
        task = asyncio.create_task(fan_out(range(9), 2, work))
        await asyncio.sleep(0.01)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task

    asyncio.run(main())
    assert sorted(ended) == [0, 1]


def test_the_cause_of_an_error_is_kept() -> None:
    async def work(item: int) -> None:
        raise KeyError("item") from OSError("disk")

    with pytest.raises(KeyError) as raised:
        asyncio.run(fan_out(range(3), 2, work))
    assert isinstance(raised.value.__cause__, OSError)
