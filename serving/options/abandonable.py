"""Work in a daemon thread that nobody has to wait for, not even the interpreter when it ends."""

import threading
from collections.abc import Callable
from concurrent.futures import Future
from typing import TypeVar

Result = TypeVar("Result")

POLL_S = 0.2


def in_daemon_thread(work: Callable[[], Result]) -> "Future[Result]":
    """Runs ``work`` in a daemon thread. The interpreter would wait for an executor of asyncio or concurrent.futures."""
    future: Future[Result] = Future()

    def run() -> None:
        future.set_running_or_notify_cancel()
        try:
            result = work()
        except BaseException as error:  # the caller that waits gets it
            future.set_exception(error)
        else:
            future.set_result(result)

    threading.Thread(target=run, name="abandonable", daemon=True).start()
    return future


def wait_for(future: "Future[Result]") -> Result:
    """The result of ``future``. Ctrl-C ends the wait; without a timeout, one just before the wait would be lost."""
    while True:
        try:
            return future.result(POLL_S)
        except TimeoutError:
            if future.done():  # it ended meanwhile, or the error is its own
                return future.result()
