"""Several async iterators as one, in order of arrival."""

import asyncio
from collections.abc import AsyncGenerator
from contextlib import aclosing
from dataclasses import dataclass
from typing import Generic, TypeVar

Item = TypeVar("Item")

QUEUE_SIZE = 64  # outputs that wait for a slow reader


@dataclass(frozen=True)
class _Item(Generic[Item]):
    index: int
    value: Item


@dataclass(frozen=True)
class _End:
    error: Exception | None


async def merge(sources: list[AsyncGenerator[Item, None]]) -> AsyncGenerator[tuple[int, Item], None]:
    """Yields (index of the source, item). The first exception ends all; closing it closes all sources."""
    if len(sources) == 1:  # the usual request: no tasks, no queue
        async with aclosing(sources[0]) as items:
            async for item in items:
                yield 0, item
        return
    queue: asyncio.Queue[_Item[Item] | _End] = asyncio.Queue(QUEUE_SIZE)
    tasks = [asyncio.create_task(_pump(index, source, queue)) for index, source in enumerate(sources)]
    try:
        num_open = len(tasks)
        while num_open:
            entry = await queue.get()
            if isinstance(entry, _Item):
                yield entry.index, entry.value
            elif entry.error is not None:
                raise entry.error
            else:
                num_open -= 1
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)


async def _pump(index: int, source: AsyncGenerator[Item, None], queue: asyncio.Queue[_Item[Item] | _End]) -> None:
    error: Exception | None = None
    try:
        async with aclosing(source) as items:
            async for item in items:
                await queue.put(_Item(index, item))
    except Exception as failure:
        error = failure  # raised again where the merged iterator is read
    await queue.put(_End(error))
