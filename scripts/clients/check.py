"""Asks a real server of the demo checkpoint through clients that nobody here wrote, and prints what passed as a table.

    scripts/check_clients [--only WORD ...] [--questions 48] [--examples 20] [--guidellm]

The packages are pinned (``requirements.txt``, ``package.json``) and installed under build/clients. Every program
prints a line a check. Exit code 1 if a check fails.
"""

import argparse
import json
import os
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.error import HTTPError
from urllib.request import Request, urlopen

import installed

HERE, ROOT = Path(__file__).parent, Path(__file__).parents[2]
START_S, STOP_S, CLIENT_S = 120.0, 60.0, 1800.0
SCHEMA_CHECKS = "not_a_server_error,status_code_conformance,content_type_conformance,response_schema_conformance"
SHORT_CONTEXT = 256  # bounds what schemathesis' requests generate
# No client is to ask other hosts, or to tell them of this run.
OFFLINE = {
    "HF_HUB_OFFLINE": "1",
    "HF_DATASETS_OFFLINE": "1",
    "LITELLM_LOCAL_MODEL_COST_MAP": "True",
    "LANGSMITH_TRACING": "false",
    "SCHEMATHESIS_TELEMETRY": "false",
    "PYTHONWARNINGS": "ignore",
}


@dataclass
class Checked:
    """``outcome``: ok, FAILED or skipped."""

    client: str
    name: str
    outcome: str
    note: str = ""


def main() -> int:
    parser = argparse.ArgumentParser(
        prog="check_clients", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--only", nargs="+", default=[], metavar="WORD", help="clients whose names hold one of the words"
    )
    parser.add_argument("--questions", type=int, default=48, help="of lm-eval's GSM8K")
    parser.add_argument("--examples", type=int, default=20, help="of schemathesis, for each route and kind")
    parser.add_argument("--guidellm", action="store_true", help=f"{installed.GUIDELLM} too, which brings 6 GB")
    args = parser.parse_args()
    # float32: there the composition of a batch changes no greedy token, so that results can be compared.
    plain = {
        "openai": lambda url: python_program("openai", url),
        "langchain-openai": lambda url: python_program("langchain", url),
        "litellm": lambda url: python_program("litellm", url),
        "npm openai": lambda url: node_program("openai", url),
        "npm ai": lambda url: node_program("ai", url),
        "lm-eval": lambda url: lm_eval(url, args.questions),
    }
    if args.guidellm:
        plain["guidellm"] = guidellm
    checked = play(plain, args.only, "--dtype", "float32")
    short = {"schemathesis": lambda url: schemathesis(url, args.examples)}
    checked += play(short, args.only, "--max-model-len", SHORT_CONTEXT)
    print(table(checked))
    return int(any(one.outcome == "FAILED" for one in checked))


def play(clients: dict[str, Callable[[str], list[Checked]]], only: list[str], *options: object) -> list[Checked]:
    """The checks of the chosen clients against one server."""
    chosen = {name: play for name, play in clients.items() if not only or any(word in name for word in only)}
    checked = []
    if chosen:
        with serving(*options) as url:
            for name, client in chosen.items():
                for one in client(url):
                    one.client = name
                    checked.append(one)
                    print(f"{one.outcome:7} {name}: {one.name} {one.note}", file=sys.stderr, flush=True)
    return checked


@contextmanager
def serving(*options: object) -> Iterator[str]:
    """The address of a server; refuses an unclean end."""
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        port = listener.getsockname()[1]
    command = [sys.executable, "-P", "-m", "splitrank.serving", "serve", "--port", str(port), "--log-level", "warning"]
    server = subprocess.Popen([*command, *map(str, options)], stdout=subprocess.PIPE, text=True)
    assert server.stdout is not None
    try:
        if not server.stdout.readline():
            raise SystemExit("the server did not start")
        yield f"http://127.0.0.1:{port}"
        server.send_signal(signal.SIGTERM)
        if server.wait(STOP_S) != 0:
            raise SystemExit(f"the server ended with code {server.returncode}")
    finally:
        server.kill()  # does nothing to a server that has ended


# ------------------------------------------------------------------ the clients


def run(command: list[str], folder: Path = ROOT) -> tuple[int, str]:
    """Exit code and all that was said."""
    environ = os.environ | OFFLINE
    done = subprocess.run(
        command, cwd=folder, env=environ, timeout=CLIENT_S, text=True, stdout=subprocess.PIPE, stderr=subprocess.STDOUT
    )
    return done.returncode, done.stdout


def python_program(name: str, url: str) -> list[Checked]:
    return _read_lines(*run([str(installed.python_clients() / "python"), str(HERE / f"with_{name}.py"), url]))


def node_program(name: str, url: str) -> list[Checked]:
    folder = installed.node_clients()
    if folder is None:
        return [Checked("", "all", "skipped", "no npm here")]
    return _read_lines(*run(["node", f"with_{name}.mjs", url], folder))


def _read_lines(code: int, said: str) -> list[Checked]:
    """The checks of a program that prints ``ok NAME`` or ``FAILED NAME: why``."""
    checked = []
    for line in said.splitlines():
        word, _, rest = line.partition(" ")
        if word in ("ok", "FAILED"):
            name, _, note = rest.partition(": ")
            checked.append(Checked("", name, word, note))
    if not checked or (code and not any(one.outcome == "FAILED" for one in checked)):
        checked.append(Checked("", "the program", "FAILED", f"exit code {code}: {said[-300:]}"))
    return checked


def lm_eval(url: str, questions: int) -> list[Checked]:
    """Its GSM8K through completions must give what ``splitrank gsm8k`` gives; through chats it must run."""
    ours = _splitrank_gsm8k(questions)
    theirs = _lm_eval(url, "local-completions", "completions", "demo_gsm8k", questions)
    name = f"GSM8K of {questions} questions by local-completions"
    note = f"{theirs} right, {ours} by splitrank gsm8k"
    checked = [Checked("", name, "ok" if theirs == ours else "FAILED", note)]
    few = min(questions, 16)
    chats = _lm_eval(url, "local-chat-completions", "chat/completions", "demo_gsm8k", few, "--apply_chat_template")
    note = f"{chats} of {few} right"
    checked.append(Checked("", "GSM8K by local-chat-completions", "FAILED" if chats is None else "ok", note))
    refusal = _refusal_of_echo(url)
    if refusal:
        return [*checked, Checked("", "log likelihoods by local-completions", "skipped", refusal)]
    likely = _lm_eval(url, "local-completions", "completions", "demo_choice", few, tokenizer="configs/demo")
    good = likely == few
    note = f"{likely} of {few} answers are the likelier ones"
    return [*checked, Checked("", "log likelihoods by local-completions", "ok" if good else "FAILED", note)]


def _refusal_of_echo(url: str) -> str:
    """Why prompts get no log probabilities; empty if they do."""
    body = {"model": "demo", "prompt": "Once upon a time", "echo": True, "logprobs": 1, "max_tokens": 1}
    headers = {"content-type": "application/json"}
    try:
        urlopen(Request(url + "/v1/completions", json.dumps(body).encode(), headers), timeout=60).close()
    except HTTPError as error:
        return str(json.loads(error.read())["error"]["message"])
    return ""


def _splitrank_gsm8k(questions: int) -> int:
    """Right answers, strictly read."""
    with tempfile.TemporaryDirectory() as folder:
        report = Path(folder) / "report.json"
        options = ["--layouts", "pp=1", "--limit", str(questions), "--dtype", "float32", "--report", str(report)]
        run([sys.executable, "-P", "-m", "splitrank.serving", "gsm8k", *options])
        (layout,) = json.loads(report.read_text())["layouts"]
        return int(layout["strict"]["num_right"])


def _lm_eval(url: str, model: str, route: str, task: str, limit: int, *more: str, tokenizer: str = "") -> int | None:
    """Right answers of the task; None if it did not run."""
    settings: dict[str, Any] = {"base_url": f"{url}/v1/{route}", "model": "demo", "num_concurrent": 8, "max_retries": 1}
    settings |= {"tokenizer": tokenizer} if tokenizer else {"tokenizer_backend": None, "tokenized_requests": False}
    arguments = ",".join(f"{name}={value}" for name, value in settings.items())
    with tempfile.TemporaryDirectory() as folder:
        command = ["run", "--model", model, "--model_args", arguments, "--tasks", task, "--limit", str(limit)]
        command += ["--include_path", str(HERE / "lm_eval_tasks"), "--output_path", folder, *more]
        _, said = run([str(installed.python_clients() / "lm-eval"), *command])
        found = list(Path(folder).rglob("results_*.json"))
        if not found:
            print(said[-2000:], file=sys.stderr)
            return None
        scores = json.loads(found[0].read_text())["results"][task]
    score = scores.get("exact_match,strict-match", scores.get("acc,none"))
    return round(float(score) * limit)


def schemathesis(url: str, examples: int) -> list[Checked]:
    """No 5xx, and every status, content type and body as ``/openapi.json`` says."""
    command = [str(installed.python_clients() / "st"), "run", f"{url}/openapi.json", "--checks", SCHEMA_CHECKS]
    command += ["--max-examples", str(examples), "--seed", "1", "--request-timeout", "120", "--continue-on-failure"]
    with tempfile.TemporaryDirectory() as folder:
        code, said = run([*command, "--suppress-health-check", "all", "--warnings", "off"], Path(folder))
    counts = [line.strip() for line in said.splitlines() if "generated" in line]
    note = counts[-1] if counts and not code else said[-3000:]
    return [Checked("", "every route of /openapi.json", "FAILED" if code else "ok", note)]


def guidellm(url: str) -> list[Checked]:
    with tempfile.TemporaryDirectory() as folder:
        report = Path(folder) / "report.json"
        command = [str(installed.guidellm() / "guidellm"), "run", "--disable-progress"]
        command += ["--backend", f"kind=openai_http,target={url},model=demo"]
        command += ["--profile", "kind=concurrent,streams=4", "--constraint", "kind=max_requests,count=24"]
        command += ["--tokenizer", f"kind=huggingface_auto,model={ROOT / 'configs' / 'demo'}"]
        command += ["--data", "kind=synthetic_text,prompt_tokens=64,output_tokens=32"]
        code, said = run([*command, "--output", f"kind=json,path={report}"])
        if code:
            return [Checked("", "24 requests, 4 at once", "FAILED", said[-500:])]
        (benchmark,) = json.loads(report.read_text())["benchmarks"]
    totals = benchmark["metrics"]["request_totals"]
    good = totals["successful"] == 24 and not totals["errored"]
    return [Checked("", "24 requests, 4 at once", "ok" if good else "FAILED", f"{totals['successful']} answered")]


def table(checked: list[Checked]) -> str:
    """Markdown."""
    rows = ["| client | check | outcome | |", "|---|---|---|---|"]
    rows += [f"| {one.client} | {one.name} | {one.outcome} | {' '.join(one.note.split())} |" for one in checked]
    return "\n".join(rows)


if __name__ == "__main__":
    began = time.monotonic()
    code = main()
    print(f"check_clients: {time.monotonic() - began:.0f} s", file=sys.stderr)
    sys.exit(code)
