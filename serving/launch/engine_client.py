"""The front's side of the engine: starts it, streams requests through it, and knows when it is dead."""

import asyncio
import itertools
import logging
import signal
import time
import uuid
from collections.abc import AsyncGenerator, Coroutine
from typing import Any

import msgspec
import zmq
import zmq.asyncio

from splitrank.serving.launch.launcher import make_run_dir, remove_run_dir, spawn_all
from splitrank.serving.launch.processes import Children
from splitrank.serving.protocol.messages import (
    AbortRequest,
    AddRequest,
    EngineFailed,
    EngineReady,
    EngineStats,
    EngineToFront,
    FrontToEngine,
    LaunchSpec,
    RequestOutput,
    RequestOutputs,
    Shutdown,
)
from splitrank.serving.protocol.sampling_params import SamplingParams
from splitrank.serving.protocol.seeds import with_seed
from splitrank.serving.protocol.wire import LINGER_MS, decode_engine_to_front, encode, front_address

logger = logging.getLogger(__name__)

MONITOR_S = 0.05
LAST_WORDS_S = 0.3
CLOSE_GRACE_S = 5.0


class EngineStartError(RuntimeError):
    """The engine did not come up; one line that names rank and phase."""


class EngineDeadError(RuntimeError):
    """The engine is gone; the message says who died."""


class EngineClient:
    """Made by ``start``, in the event loop that uses it; ``close`` it. Not for use from other threads."""

    def __init__(self, spec: LaunchSpec) -> None:
        self.reports: list[str] = []
        self.stats: EngineStats | None = None
        self.death: str | None = None
        self.died = asyncio.Event()
        self._spec = make_run_dir(spec)
        self._children = Children()
        self._context = zmq.asyncio.Context()
        self._socket = self._context.socket(zmq.PAIR)
        self._socket.setsockopt(zmq.LINGER, LINGER_MS)
        self._socket.setsockopt(zmq.SNDHWM, 0)  # bounded by the open streams: each sends two messages at most
        self._socket.bind(front_address(self._spec.run_dir))
        self._ready = asyncio.Event()
        self._streams: dict[str, asyncio.Queue[RequestOutput | None]] = {}
        self._numbers = itertools.count()
        self._failure: str | None = None  # what the engine gave up with
        self._silence_s: float | None = None  # None until the engine has said something
        self._tasks: list[asyncio.Task[None]] = []
        self._ending: asyncio.Task[None] | None = None

    # ------------------------------------------------------------ life

    @classmethod
    async def start(cls, spec: LaunchSpec, rank_module: str = "splitrank.serving.rank.rank") -> "EngineClient":
        """Start all processes and wait until every rank is ready.

        Raises ``EngineStartError``, with nothing left behind.
        """
        client = cls(spec)
        try:
            spawn_all(client._spec, rank_module, client._children)
            client._tasks = [
                asyncio.create_task(client._or_die("reading the engine's messages", client._receive())),
                asyncio.create_task(client._or_die("watching the processes", client._monitor())),
            ]
            await client._wait_ready()
        except BaseException:
            client._die("the start was broken off")
            await client.close()
            raise
        return client

    @property
    def pids(self) -> dict[str, int]:
        """Process ids by name: "engine", "rank 0 (stage 0, tp 0)", ..."""
        return self._children.pids

    async def close(self) -> None:
        """Orderly shutdown, then terminate, then kill: about 12 s at most. Open streams end with ``EngineDeadError``.

        Nothing is left behind: processes reaped, run folder removed. A second call waits for the first.
        """
        if self.death is None:
            self._end_streams("the engine was closed")
            self._post(Shutdown())
            self._ending = asyncio.create_task(self._end(CLOSE_GRACE_S))
        assert self._ending is not None
        await asyncio.shield(self._ending)

    async def _wait_ready(self) -> None:
        waits = [asyncio.create_task(event.wait()) for event in (self._ready, self.died)]
        # The engine itself keeps the limit and names the rank; the margin is for an engine that says nothing.
        limit_s = self._spec.load_timeout_s + self._spec.heartbeat_timeout_s
        try:
            await asyncio.wait(waits, timeout=limit_s, return_when=asyncio.FIRST_COMPLETED)
        finally:
            for wait in waits:
                wait.cancel()
        if self.death is None and not self._ready.is_set():
            self._die(f"engine process not ready after {limit_s:g} s")
        if self.death is not None:
            raise EngineStartError(self.death)

    # ------------------------------------------------------------ requests

    async def stream(self, prompt_token_ids: list[int], params: SamplingParams) -> AsyncGenerator[RequestOutput, None]:
        """Outputs of one request, the last one with a ``finish_reason`` (a refusal is an output with "error").

        Closing or cancelling it earlier aborts the request. Raises ``EngineDeadError`` as soon as the engine is dead.
        """
        if self.death is not None:
            raise EngineDeadError(self.death)
        request_id = str(next(self._numbers))
        queue: asyncio.Queue[RequestOutput | None] = asyncio.Queue()
        self._streams[request_id] = queue
        open_in_engine, num_cached = True, 0
        try:
            # Random if the door gave none: a server that is started again does not repeat itself.
            seeded = with_seed(params, self._spec.seed, uuid.uuid4().hex)
            self._post(AddRequest(request_id, prompt_token_ids, seeded))
            while open_in_engine:
                output = await queue.get()
                if output is None:
                    raise EngineDeadError(self.death)
                open_in_engine = output.finish_reason is None
                num_cached = max(num_cached, output.num_cached_tokens)
                yield msgspec.structs.replace(output, num_cached_tokens=num_cached) if num_cached else output
        finally:
            del self._streams[request_id]
            if open_in_engine and self.death is None:
                self._post(AbortRequest(request_id))

    def _post(self, message: FrontToEngine) -> None:
        # Not awaited: without a high-water mark it is queued at once, and a stream being cancelled cannot wait.
        self._socket.send(encode(message))

    # ------------------------------------------------------------ listening

    async def _or_die(self, what: str, work: Coroutine[Any, Any, None]) -> None:
        """Without either of its tasks, this client would wait for an engine that it cannot hear."""
        try:
            await work
        except Exception as error:
            logger.exception("%s failed", what)
            self._die(f"{what} failed: {type(error).__name__}: {' '.join(str(error).split())}")

    async def _receive(self) -> None:
        while True:
            message = decode_engine_to_front(await self._socket.recv())
            self._silence_s = 0.0
            self._hear(message)

    def _hear(self, message: EngineToFront) -> None:
        if isinstance(message, RequestOutputs):
            for output in (output for step in message.steps for output in step.all()):
                queue = self._streams.get(output.request_id)
                if queue is not None:  # else: aborted, and the output was under way
                    queue.put_nowait(output)
        elif isinstance(message, EngineStats):
            self.stats = message
        elif isinstance(message, EngineReady):
            self.reports = message.reports
            self._ready.set()
        elif isinstance(message, EngineFailed):
            self._failure = message.error  # the monitor takes it from here

    async def _monitor(self) -> None:
        """Notices a child that exits, and an engine that says nothing."""
        before = time.monotonic()
        while self.death is None:
            await asyncio.sleep(MONITOR_S)
            gone = self._children.first_exit()
            if gone is not None or self._failure is not None:
                await self._learn_cause()
                self._die(self._failure)
            now = time.monotonic()
            self._count_silence(now - before)
            before = now

    async def _learn_cause(self) -> None:
        """The peers of a killed rank may complain before its death shows; a rank that gave up has said why, and that
        message may still be under way. Both are a matter of milliseconds."""
        deadline = time.monotonic() + LAST_WORDS_S
        while time.monotonic() < deadline:
            gone = self._children.first_exit()
            if gone is not None and gone.was_killed:
                return
            await asyncio.sleep(MONITOR_S)

    def _count_silence(self, elapsed_s: float) -> None:
        # Counted in small portions: when this event loop itself was held up, the messages are there, still unread.
        if self._silence_s is None or self.death is not None:
            return
        self._silence_s += min(elapsed_s, 10 * MONITOR_S)
        if self._silence_s > self._spec.heartbeat_timeout_s:
            self._die(f"engine process has been silent for more than {self._spec.heartbeat_timeout_s:g} s")

    # ------------------------------------------------------------ death

    def _die(self, reason: str | None) -> None:
        """The first reason counts, but a killed child is the cause of whatever the others complain about."""
        if self.death is not None:
            return
        gone = self._children.first_exit()
        if gone is not None and (gone.was_killed or reason is None):
            reason = gone.describe_exit()
        self._end_streams(str(reason))
        self.died.set()
        self._children.signal(signal.SIGKILL)
        self._ending = asyncio.create_task(self._end(grace_s=0.0))

    def _end_streams(self, reason: str) -> None:
        self.death = reason
        for queue in self._streams.values():
            queue.put_nowait(None)

    async def _end(self, grace_s: float) -> None:
        """Reap every process, then let go of sockets, tasks and the run folder."""
        left = await self._children.end(grace_s)
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        self._socket.close(linger=0)
        self._context.term()
        remove_run_dir(self._spec.run_dir)
        if left:
            raise EngineDeadError(f"{', '.join(left)} outlived SIGKILL")
