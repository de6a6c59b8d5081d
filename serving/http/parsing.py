"""Parses bodies off the event loop: small ones in threads, large ones in processes of their own.

So a large request delays no other one: it does not hold Python's lock, and small requests wait for small ones only.
When a request is cancelled (a timeout, a client that hangs up, a server that stops), it leaves the queue, or its
process is killed.
"""

import asyncio
import logging
import os
import socket
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor

import msgspec

from splitrank.serving.http.parse_worker import LENGTH, Reply, Setup, Work, frame
from splitrank.serving.launch.processes import POLL_S
from splitrank.serving.openai.errors import ApiError, unavailable
from splitrank.serving.openai.parser import Parsed
from splitrank.serving.openai.service import OpenAIService

SMALL_BODY_BYTES = 64 * 2**10  # 20 ms of JSON, template and tokenizing at most
NUM_THREADS = 2
NUM_WORKERS = 2
TIMEOUT_S = 30.0
REAP_S = 1.0
REAP_LIMIT_S = 5.0
WRITE_BYTES = 256 * 2**10
_decode_reply = msgspec.msgpack.Decoder(Reply).decode
_log = logging.getLogger(__name__)


class Parsing:
    """``parse`` from one event loop; ``aclose`` ends threads and processes."""

    def __init__(self, log_level: str) -> None:
        self._threads = ThreadPoolExecutor(NUM_THREADS, thread_name_prefix="parse")
        self.workers = [ParseWorker(log_level) for _ in range(NUM_WORKERS)]
        self._idle = [*self.workers]
        self._free = asyncio.Semaphore(NUM_WORKERS)

    async def parse(self, service: OpenAIService, url: str, body: bytes) -> Parsed:
        """Raises ``ApiError``: what ``RequestParser.parse`` refuses, and 503 after ``TIMEOUT_S``."""
        try:
            async with asyncio.timeout(TIMEOUT_S):
                if len(body) <= SMALL_BODY_BYTES:
                    return await asyncio.get_running_loop().run_in_executor(self._threads, service.parse, url, body)
                async with self._free:
                    return await self._parse_large(service, url, body)
        except TimeoutError:
            message = f"preparing the prompt took longer than {TIMEOUT_S:g} s"
            raise unavailable(message, "prompt_timeout") from None

    async def _parse_large(self, service: OpenAIService, url: str, body: bytes) -> Parsed:
        worker = self._idle.pop()  # the one that was used last: its process runs already
        try:
            reply = await worker.ask(service, url, body)
        finally:
            self._idle.append(worker)
        return reply.parsed()

    async def aclose(self) -> None:
        """Ends the parsing of all requests, within ``REAP_LIMIT_S``."""
        self._threads.shutdown(wait=False, cancel_futures=True)
        for worker in self.workers:
            worker.kill()
        await asyncio.gather(*(worker.reap() for worker in self.workers))


class ParseWorker:
    """One process; it is started for the first request, and again for the next one after it was killed."""

    def __init__(self, log_level: str) -> None:
        self._log_level = log_level
        self._process: subprocess.Popen[bytes] | None = None
        self._reader: asyncio.StreamReader
        self._writer: asyncio.StreamWriter
        self._killed: list[subprocess.Popen[bytes]] = []  # and not reaped yet

    @property
    def pid(self) -> int | None:
        return None if self._process is None else self._process.pid

    async def ask(self, service: OpenAIService, url: str, body: bytes) -> Reply:
        """Parses one request at a time. If the call ends without a reply, the process is killed."""
        try:
            if self._process is None:
                await self._start(service)
            await self._write(frame(Work(url, len(body))))
            await self._write(body)
            length = LENGTH.unpack(await self._reader.readexactly(LENGTH.size))[0]
            return _decode_reply(await self._reader.readexactly(length))
        except (asyncio.IncompleteReadError, ConnectionError):
            raise await self._death(len(body)) from None
        except BaseException:
            self.kill()
            raise

    async def _start(self, service: OpenAIService) -> None:
        ours, theirs = socket.socketpair()
        with theirs:
            self._reader, self._writer = await asyncio.open_connection(sock=ours)
            try:
                self._process = _spawn(theirs.fileno())
            except OSError:
                self._writer.transport.abort()
                raise
        _log.info("parse worker %d starts", self._process.pid)
        setup = Setup(service.tokenizer.files, service.info, service.settings, os.getpid(), self._log_level)
        await self._write(frame(setup))

    async def _write(self, data: bytes) -> None:
        view = memoryview(data)
        for start in range(0, len(data), WRITE_BYTES):  # so that other requests get their turns
            self._writer.write(view[start : start + WRITE_BYTES])
            await self._writer.drain()

    async def _death(self, num_bytes: int) -> ApiError:
        """The error of a worker that has ended by itself or was killed, most likely for lack of memory."""
        process = self._process or self._killed[-1]  # ``aclose`` has killed it
        try:
            code = await _exit_code(process, REAP_LIMIT_S)
        finally:  # also if the client hangs up meanwhile: else the next request would be given to a dead process
            self.kill()
        how = f"was killed by signal {-code}" if code is not None and code < 0 else f"ended with code {code}"
        _log.error("parse worker %d %s while it read a request of %d bytes", process.pid, how, num_bytes)
        return ApiError(500, f"the process that read this request {how}", type="server_error", code="parse_failed")

    def kill(self) -> None:
        if self._process is not None:
            self._process.kill()
            self._writer.transport.abort()
            self._killed = [killed for killed in self._killed if killed.poll() is None] + [self._process]
            asyncio.get_running_loop().call_later(
                REAP_S, self._process.poll
            )  # reaps it; else it stays a zombie until the next one
            self._process = None

    async def reap(self) -> None:
        for process in self._killed:
            await _exit_code(process, REAP_LIMIT_S)


def _spawn(fd: int) -> "subprocess.Popen[bytes]":
    command = [sys.executable, "-P", "-m", "splitrank.serving.http.parse_worker", str(fd)]
    # A session of its own: Ctrl-C at the terminal reaches the server alone, which ends its workers.
    return subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=2, pass_fds=[fd], start_new_session=True)


async def _exit_code(process: "subprocess.Popen[bytes]", limit_s: float) -> int | None:
    """The exit code; None if the process runs after ``limit_s``."""
    deadline = time.monotonic() + limit_s
    while True:
        code = process.poll()
        if code is not None or time.monotonic() > deadline:
            return code
        await asyncio.sleep(POLL_S)
