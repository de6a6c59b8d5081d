"""Many requests, a bounded number of them open at once."""

import asyncio
from collections.abc import Awaitable, Callable, Iterable
from typing import TypeVar

Item = TypeVar("Item")


async def fan_out(items: Iterable[Item], limit: int, work: Callable[[Item], Awaitable[None]]) -> None:
    """Runs ``work`` on every item, started in order, ``limit`` at a time.

    After the first exception, or a cancellation, it cancels all others, waits for them, and raises that exception.
    """
    waiting = iter(items)

    async def worker() -> None:
        for item in waiting:
            await work(item)

    try:
        async with asyncio.TaskGroup() as group:
            for _ in range(limit):
                group.create_task(worker())
    except BaseExceptionGroup as errors:
        # One is enough: the others have the same cause, or were cancelled.
        first = errors.exceptions[0]
        raise first from first.__cause__
