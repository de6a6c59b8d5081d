"""The front's client of the engine: starts its processes, streams requests, and notices when one of them dies."""

import asyncio
import itertools
import logging
import signal
import time
import uuid
from collections.abc import AsyncGenerator, Iterator
from contextlib import contextmanager
from functools import partial

import msgspec

from splitrank.serving.launch.engine_socket import EngineSocket
from splitrank.serving.launch.hosts import Hosts, HostsError
from splitrank.serving.launch.launcher import make_run_dir, remove_run_dir, spawn_all
from splitrank.serving.launch.output_stream import OutputStream
from splitrank.serving.launch.processes import Children
from splitrank.serving.options.abandonable import in_daemon_thread
from splitrank.serving.options.config import hosts_secret
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
from splitrank.serving.protocol.wire import decode_engine_to_front, encode

logger = logging.getLogger(__name__)

MONITOR_S = 0.05
CAUSE_LIMIT_S = 0.3  # to learn why a process has ended
CLOSE_LIMIT_S = 5.0  # for processes to end by themselves


class EngineStartError(RuntimeError):
    """The engine did not start; one line that names rank and phase."""


class EngineDeadError(RuntimeError):
    """The engine has ended; the message names the process that died."""


class EngineClient:
    """``start`` makes it in the event loop that uses it; ``close`` ends it. Not to be used from other threads."""

    def __init__(self, spec: LaunchSpec, hosts: Hosts | None = None) -> None:
        self.reports: list[str] = []
        self.stats: EngineStats | None = None
        self.death: str | None = None
        self.died = asyncio.Event()
        self._hosts = hosts
        self._spec = make_run_dir(spec, hosts.secret if hosts is not None else b"")
        self._children = Children()
        try:
            self._socket = EngineSocket(self._spec.run_dir, self._receive)
        except BaseException:
            remove_run_dir(self._spec.run_dir)
            raise
        self._ready = asyncio.Event()
        self._streams: dict[str, OutputStream] = {}
        self._numbers = itertools.count()
        self._failure: str | None = None  # the error that the engine has sent
        self._silence_s: float | None = None  # since the last message; None before the first
        self._watch: asyncio.Task[None] | None = None
        self._ending: asyncio.Task[None] | None = None

    # ------------------------------------------------------------ life

    @classmethod
    async def start(cls, spec: LaunchSpec, rank_module: str = "splitrank.serving.rank.rank_main") -> "EngineClient":
        """Starts all processes and waits until every rank is ready. If there are several hosts, waits for them first.

        Raises ``EngineStartError`` after all processes, sockets and files are gone.
        """
        if spec.num_nodes == 1:
            return await cls._start(spec, rank_module, None)
        if spec.node_rank > 0:
            raise ValueError(f"node_rank {spec.node_rank}: the engine runs on host 0; here, run a splitrank command")
        # In threads that a cancelled start abandons: closing ends the wait.
        secret = hosts_secret(spec.secret_file)
        hosts = await asyncio.wrap_future(in_daemon_thread(partial(Hosts, spec, secret)))
        try:
            agreed = await asyncio.wrap_future(in_daemon_thread(hosts.gather))
            return await cls._start(agreed, rank_module, hosts)
        except BaseException as error:
            if not hosts.is_started:
                hosts.fail(str(error) or "the start was broken off")
                hosts.close()
            if isinstance(error, HostsError):
                raise EngineStartError(str(error)) from None
            raise

    @classmethod
    async def _start(cls, spec: LaunchSpec, rank_module: str, hosts: Hosts | None) -> "EngineClient":
        client = cls(spec, hosts)
        try:
            if hosts is None:
                spawn_all(client._spec, rank_module, client._children)
            else:
                spawn_all(client._spec, rank_module, client._children, hosts.links)
                hosts.start(client._spec)
            client._watch = asyncio.create_task(client._monitor())
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
        """Shuts down in order, then terminates, then kills: 12 s at most. Open streams raise ``EngineDeadError``.

        Afterwards the processes are reaped and the run folder is removed. A second call waits for the first.
        """
        if self.death is None:
            self._end_streams("the engine was closed")
            if self._hosts is not None:
                self._hosts.end()
            self._post(Shutdown())
            self._ending = asyncio.create_task(self._end(CLOSE_LIMIT_S))
        assert self._ending is not None
        await asyncio.shield(self._ending)

    async def _wait_ready(self) -> None:
        waits = [asyncio.create_task(event.wait()) for event in (self._ready, self.died)]
        # The engine checks load_timeout_s itself, and names the rank. The margin is for an engine that says nothing.
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
        """Outputs of one request; the last one has a ``finish_reason`` ("error" if the request is refused).

        To close or cancel the stream earlier aborts the request. Raises ``EngineDeadError`` once the engine is dead.
        """
        if self.death is not None:
            raise EngineDeadError(self.death)
        request_id = str(next(self._numbers))
        stream = self._streams[request_id] = OutputStream()
        open_in_engine, num_cached = True, 0
        try:
            # Random, if nobody gave a seed: a server that is started again does not repeat its answers.
            seeded = with_seed(params, self._spec.seed, uuid.uuid4().hex)
            self._post(AddRequest(request_id, prompt_token_ids, seeded))
            while open_in_engine:
                output = await stream.get()
                if output is None:
                    raise EngineDeadError(self.death)
                open_in_engine = output.finish_reason is None
                num_cached = output.num_cached_tokens or num_cached  # only some outputs tell
                yield msgspec.structs.replace(output, num_cached_tokens=num_cached) if num_cached else output
        finally:
            del self._streams[request_id]
            if open_in_engine and self.death is None:
                self._post(AbortRequest(request_id))

    def _post(self, message: FrontToEngine) -> None:
        self._socket.send(encode(message))

    # ------------------------------------------------------------ messages of the engine

    def _receive(self, data: bytes) -> None:
        with self._dies_of_errors("reading the engine's messages"):
            message = decode_engine_to_front(data)
            self._silence_s = 0.0
            self._on_message(message)

    @contextmanager
    def _dies_of_errors(self, what: str) -> Iterator[None]:
        """An error in ``what`` ends the client, which would wait for ever without it."""
        try:
            yield
        except Exception as error:
            logger.exception("%s failed", what)
            self._die(f"{what} failed: {type(error).__name__}: {' '.join(str(error).split())}")

    def _on_message(self, message: EngineToFront) -> None:
        if isinstance(message, RequestOutputs):
            for output in (output for step in message.steps for output in step.all()):
                stream = self._streams.get(output.request_id)
                if stream is not None:  # None: the request was aborted before this output arrived
                    stream.put(output)
        elif isinstance(message, EngineStats):
            self.stats = message
        elif isinstance(message, EngineReady):
            self.reports = message.reports
            self._ready.set()
        elif isinstance(message, EngineFailed):
            self._failure = message.error  # ``_monitor`` ends the client

    async def _monitor(self) -> None:
        """Notices a process that exits, an engine that fails, and one that is silent."""
        before = time.monotonic()
        with self._dies_of_errors("watching the processes"):
            while self.death is None:
                await asyncio.sleep(MONITOR_S)
                gone = self._children.first_exit()
                if gone is not None or self._failure is not None or self._host_failure is not None:
                    await self._learn_cause()
                    self._die(self._failure)
                now = time.monotonic()
                self._count_silence(now - before)
                before = now

    async def _learn_cause(self) -> None:
        """Waits a moment for the cause of a failure. When a rank is killed, its peers may fail before its exit shows;
        when a rank fails by itself, the message with its reason may arrive after its exit."""
        deadline = time.monotonic() + CAUSE_LIMIT_S
        while time.monotonic() < deadline:
            gone = self._children.first_exit()
            if (gone is not None and gone.was_killed) or self._host_failure is not None:
                return
            await asyncio.sleep(MONITOR_S)

    @property
    def _host_failure(self) -> str | None:
        return self._hosts.find_failure() if self._hosts is not None else None

    def _count_silence(self, elapsed_s: float) -> None:
        # At most 0.5 s is added at a time. If this event loop was blocked, the engine's messages wait unread, and the
        # time that it was blocked must not count as silence of the engine.
        if self._silence_s is None or self.death is not None:
            return
        self._silence_s += min(elapsed_s, 10 * MONITOR_S)
        if self._silence_s > self._spec.heartbeat_timeout_s:
            self._die(f"engine process has been silent for more than {self._spec.heartbeat_timeout_s:g} s")

    # ------------------------------------------------------------ the end

    def _die(self, reason: str | None) -> None:
        """Ends everything. The first reason is kept, but a killed process is the cause of all other errors, and so is
        what another host says."""
        if self.death is not None:
            return
        gone = self._children.first_exit()
        if gone is not None and (gone.was_killed or reason is None):
            reason = gone.describe_exit()
        elif self._host_failure is not None:
            reason = self._host_failure
        if self._hosts is not None:
            self._hosts.fail(str(reason))
        self._end_streams(str(reason))
        self.died.set()
        self._children.signal(signal.SIGKILL)
        self._ending = asyncio.create_task(self._end(exit_limit_s=0.0))

    def _end_streams(self, reason: str) -> None:
        self.death = reason
        for stream in self._streams.values():
            stream.close()

    async def _end(self, exit_limit_s: float) -> None:
        """Reaps all processes, then closes sockets, ends tasks and removes the run folder."""
        left = await self._children.end(exit_limit_s)
        if self._watch is not None:
            self._watch.cancel()
            await asyncio.gather(self._watch, return_exceptions=True)
        self._socket.close()
        remove_run_dir(self._spec.run_dir)
        if self._hosts is not None:
            await self._leave_hosts(self._hosts, CLOSE_LIMIT_S if exit_limit_s else 0.0)
        if left:
            raise EngineDeadError(f"{', '.join(left)} outlived SIGKILL")

    @staticmethod
    async def _leave_hosts(hosts: Hosts, limit_s: float) -> None:
        """Waits until the other hosts have ended, too, when all end in order."""
        deadline = time.monotonic() + limit_s
        while not hosts.have_ended:
            if time.monotonic() >= deadline:
                break
            await asyncio.sleep(MONITOR_S)
        hosts.close()
