"""Work that can be abandoned: nobody has to wait for it, not even the end of the interpreter."""

import threading
from collections.abc import Callable
from concurrent.futures import Future
from typing import TypeVar

Result = TypeVar("Result")

POLL_S = 0.2


def in_daemon_thread(work: Callable[[], Result]) -> "Future[Result]":
    """Runs ``work`` in a daemon thread. (The executors of asyncio and concurrent.futures are waited for at the end.)"""
    future: Future[Result] = Future()

    def run() -> None:
        future.set_running_or_notify_cancel()
        try:
            result = work()
        except BaseException as error:  # whatever it is, it belongs to whoever waits
            future.set_exception(error)
        else:
            future.set_result(result)

    threading.Thread(target=run, name="abandonable", daemon=True).start()
    return future


def wait_for(future: "Future[Result]") -> Result:
    """Its result. Ctrl-C ends the waiting; without a timeout, one in the moment before the wait would not."""
    while True:
        try:
            return future.result(POLL_S)
        except TimeoutError:
            if future.done():  # meanwhile, or the work's own
                return future.result()
