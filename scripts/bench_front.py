"""How long large requests hold up everybody else: the longest gap of ``/health`` and of a stream; JSON lines on stdout.

    python scripts/bench_front.py [--sizes-mib 1 5 25] [--kinds text ids lists messages] [--posts 2] [--context 131072]

Serves the demo checkpoint, stretched to ``--context`` positions so that a long prompt is tokenised and not refused at
once. While one client asks for ``/health`` and another reads a stream, ``--posts`` clients post one body of each kind
and size, and the gaps before and meanwhile are printed, with the status of the answers. Each body runs against the
quiet server first, so that the two gaps of a line are of one moment.
"""

import argparse
import http.client
import json
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import psutil  # type: ignore[import-untyped]

QUIET_S = 3.0
MAX_BODY_BYTES = 32 * 2**20  # far above what the context needs: the large bodies are to be parsed
LIMIT_S = 300.0
WORDS = "The quick brown fox counts 12345 apples, then sells 67 of them. "
CHAT, COMPLETIONS = "/v1/chat/completions", "/v1/completions"
DEMO = Path(__file__).parents[1] / "configs" / "demo"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sizes-mib", nargs="+", type=float, default=[1.0, 5.0, 25.0])
    parser.add_argument("--kinds", nargs="+", default=sorted(BODIES), choices=sorted(BODIES))
    parser.add_argument("--posts", type=int, default=2, help="clients that post the body at once")
    parser.add_argument("--context", type=int, default=131072)
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        model = stretched_demo(Path(folder), args.context)
        with serving(model, args.context) as server:
            measure_all(server, args)


def measure_all(server: "Server", args: argparse.Namespace) -> None:
    for kind in args.kinds:
        for size in args.sizes_mib:
            path, body = BODIES[kind](int(size * 2**20))
            print(json.dumps({"kind": kind, "mib": size, **server.measure(path, body, args.posts)}), flush=True)


# ------------------------------------------------------------------ what is posted


def text_body(size: int) -> tuple[str, bytes]:
    return COMPLETIONS, json.dumps({"prompt": WORDS * (size // len(WORDS)), "max_tokens": 1}).encode()


def ids_body(size: int) -> tuple[str, bytes]:
    return COMPLETIONS, json.dumps({"prompt": [1000] * (size // 6), "max_tokens": 1}).encode()


def lists_body(size: int) -> tuple[str, bytes]:
    return COMPLETIONS, b'{"prompt": [' + b",".join([b"[]"] * (size // 3)) + b"]}"


def messages_body(size: int) -> tuple[str, bytes]:
    message = {"role": "user", "content": WORDS}
    return CHAT, json.dumps({"messages": [message] * (size // len(json.dumps(message))), "max_tokens": 1}).encode()


BODIES: dict[str, Callable[[int], tuple[str, bytes]]] = {
    "text": text_body,
    "ids": ids_body,
    "lists": lists_body,
    "messages": messages_body,
}


# ------------------------------------------------------------------ the server and its clients


def stretched_demo(folder: Path, context: int) -> Path:
    """The demo checkpoint with so many positions: its answers mean nothing beyond the 8,192 it was trained on."""
    for file in DEMO.iterdir():
        if file.name != "config.json":
            (folder / file.name).symlink_to(file)
    config = json.loads((DEMO / "config.json").read_text())
    config.get("text_config", config)["max_position_embeddings"] = context
    (folder / "config.json").write_text(json.dumps(config))
    return folder


@contextmanager
def serving(model: Path, context: int) -> Iterator["Server"]:
    command = [sys.executable, "-m", "splitrank.serving", "serve", "--port", "0", "--log-level", "warning"]
    command += ["--model", str(model), "--max-running-requests", "2", "--threads-per-rank", "1"]
    command += ["--max-model-len", str(context), "--max-body-bytes", str(MAX_BODY_BYTES)]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    try:
        yield Server(process)
    finally:
        process.send_signal(signal.SIGINT)
        process.send_signal(signal.SIGINT)
        process.wait(60)


class Server:
    def __init__(self, process: "subprocess.Popen[str]") -> None:
        assert process.stdout is not None
        self._process = psutil.Process(process.pid)
        self._port = int(process.stdout.readline().rsplit(":", 1)[1])

    def measure(self, path: str, body: bytes, posts: int) -> dict[str, object]:
        """Gaps in seconds, quiet and while ``posts`` clients post ``body``; and what these were answered."""
        stop = threading.Event()
        health, stream = Gaps(), Gaps()
        watchers = [
            threading.Thread(target=self._watch_health, args=(health, stop)),
            threading.Thread(target=self._watch_stream, args=(stream, stop)),
        ]
        for watcher in watchers:
            watcher.start()
        try:
            stream.first.wait(LIMIT_S)
            health.restart(), stream.restart()
            time.sleep(QUIET_S)
            quiet = {"quiet_health_gap_s": health.restart(), "quiet_stream_gap_s": stream.restart()}
            began = time.monotonic()
            answers = self._post_all(path, body, posts)
            seconds = time.monotonic() - began
            time.sleep(0.1)
            during = {"health_gap_s": health.restart(), "stream_gap_s": stream.restart()}
        finally:
            stop.set()
            for watcher in watchers:
                watcher.join()
        answered = {"answered_s": round(seconds, 2), "answers": answers, "front_mib": self._front_mib()}
        return {**quiet, **during, **answered}

    def _post_all(self, path: str, body: bytes, posts: int) -> list[str]:
        answers: list[str] = []
        threads = [threading.Thread(target=lambda: answers.append(self._post(path, body))) for _ in range(posts)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        return sorted(answers)

    def _connect(self) -> http.client.HTTPConnection:
        return http.client.HTTPConnection("127.0.0.1", self._port, timeout=LIMIT_S)

    def _post(self, path: str, body: bytes) -> str:
        connection = self._connect()
        try:
            connection.request("POST", path, body, {"content-type": "application/json"})
            response = connection.getresponse()
            code = json.loads(response.read()).get("error", {}).get("code")
            return f"{response.status} {code}"
        except (OSError, http.client.HTTPException) as error:
            return type(error).__name__
        finally:
            connection.close()

    def _watch_health(self, gaps: "Gaps", stop: threading.Event) -> None:
        connection = self._connect()
        while not stop.wait(0.02):
            gaps.begin()
            try:
                connection.request("GET", "/health")
                connection.getresponse().read()
            except (OSError, http.client.HTTPException):  # an idle connection that the server closed
                connection.close()
            else:
                gaps.end()
        connection.close()

    def _watch_stream(self, gaps: "Gaps", stop: threading.Event) -> None:
        body = {"prompt": "Hello", "max_tokens": 8000, "ignore_eos": True, "temperature": 0, "stream": True}
        connection = self._connect()
        while not stop.is_set():
            connection.request("POST", COMPLETIONS, json.dumps(body), {"content-type": "application/json"})
            response = connection.getresponse()
            gaps.begin()
            while not stop.is_set() and response.readline():
                gaps.end()
                gaps.begin()
            connection.close()

    def _front_mib(self) -> int:
        """Most memory that the front process and its parse workers, not engine and ranks, hold now."""
        total = self._process.memory_info().rss
        for child in self._process.children():
            try:
                total += child.memory_info().rss if "parse_worker" in " ".join(child.cmdline()) else 0
            except psutil.Error:
                pass  # it has been killed meanwhile
        return int(total // 2**20)


class Gaps:
    """The longest time between ``begin`` and ``end``, counting one that is still open."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._began: float | None = None
        self._longest = 0.0
        self.first = threading.Event()

    def begin(self) -> None:
        """A second one without ``end`` between belongs to the same gap."""
        with self._lock:
            self._began = self._began or time.monotonic()

    def end(self) -> None:
        with self._lock:
            if self._began is not None:
                self._longest = max(self._longest, time.monotonic() - self._began)
            self._began = None
        self.first.set()

    def restart(self) -> float:
        """The longest gap so far, in seconds; counts anew from here."""
        with self._lock:
            now = time.monotonic()
            longest = max(self._longest, now - self._began if self._began is not None else 0.0)
            self._longest = 0.0
            if self._began is not None:
                self._began = now
        return round(longest, 3)


if __name__ == "__main__":
    main()
