"""Many requests, a bounded number of them open at once."""

import asyncio
from collections.abc import Awaitable, Callable, Iterable
from typing import TypeVar

Item = TypeVar("Item")


async def fan_out(items: Iterable[Item], limit: int, work: Callable[[Item], Awaitable[None]]) -> None:
    """Run ``work`` on every item, started in order, ``limit`` at a time.

    The first exception cancels all others, waits for them to end, and is raised as it is; so does a cancellation.
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
        # One is enough: the others failed of the same cause or of being cancelled.
        first = errors.exceptions[0]
        raise first from first.__cause__
