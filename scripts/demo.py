"""Serves the demo checkpoint over two pipeline ranks, asks it through the OpenAI client, shows what came back."""

import argparse
import re
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from queue import Empty, Queue
from threading import Thread

from openai import OpenAI

START_LIMIT_S = 180.0
STOP_LIMIT_S = 30.0
DEFAULT_QUESTION = "Natalia sold 48 stickers in April and half as many in May. How many stickers did she sell in all?"
ADDRESS = re.compile(r"http://127\.0\.0\.1:\d+")


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--question", default=DEFAULT_QUESTION)
    parser.add_argument("--max-tokens", type=int, default=256)
    arguments = parser.parse_args()
    command = [sys.executable, "-P", "-m", "splitrank.serving", "serve", "--pp", "2", "--port", "0"]
    print("$ splitrank " + " ".join(command[4:]), flush=True)
    with serving(command) as address:
        ask(address, arguments.question, arguments.max_tokens)
    print("the server has stopped cleanly")
    return 0


@contextmanager
def serving(command: list[str]) -> Iterator[str]:
    """The address of a running server; stops it at the end and refuses an unclean end."""
    server = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    lines: Queue[str | None] = Queue()
    reader = Thread(target=echo_lines, args=(server, lines), daemon=True)
    reader.start()
    try:
        yield wait_for_address(lines)
    finally:
        server.send_signal(signal.SIGTERM)
        try:
            code = server.wait(timeout=STOP_LIMIT_S)
        except subprocess.TimeoutExpired:
            server.kill()  # the engine and its ranks notice and end on their own
            raise
        reader.join(timeout=STOP_LIMIT_S)
    if code != 0:
        raise SystemExit(f"the server ended with code {code}")


def echo_lines(server: subprocess.Popen[str], lines: "Queue[str | None]") -> None:
    assert server.stdout is not None
    for line in server.stdout:
        print("  | " + line.rstrip(), flush=True)
        lines.put(line)
    lines.put(None)


def wait_for_address(lines: "Queue[str | None]") -> str:
    """The address that the server prints once it answers."""
    deadline = time.monotonic() + START_LIMIT_S
    while True:
        try:
            line = lines.get(timeout=max(0.0, deadline - time.monotonic()))
        except Empty:
            raise SystemExit(f"the server was not ready within {START_LIMIT_S:.0f} s") from None
        if line is None:
            raise SystemExit("the server ended before it was ready")
        if match := ADDRESS.search(line):
            return match.group()


def ask(address: str, question: str, max_tokens: int) -> None:
    client = OpenAI(base_url=address + "/v1", api_key="none", timeout=60.0, max_retries=0)
    model = client.models.list().data[0].id
    answer = client.chat.completions.create(
        model=model, messages=[{"role": "user", "content": question}], max_tokens=max_tokens, temperature=0
    )
    choice, usage = answer.choices[0], answer.usage
    assert usage is not None
    print(f"\nquestion: {question}")
    for title, text in (
        ("thinking", getattr(choice.message, "reasoning_content", None)),
        ("answer", choice.message.content),
    ):
        if text is not None:
            print(f"{title}:\n  " + text.replace("\n", "\n  "))
    print()
    print(f"model {model}: {usage.prompt_tokens} prompt tokens, {usage.completion_tokens} generated tokens, ", end="")
    print(f"finished by {choice.finish_reason}\n", flush=True)


if __name__ == "__main__":
    sys.exit(main())
