"""The options of every command: one frozen dataclass each, the only place an option is stated.

Flags, TOML keys and ``--help`` are generated from the fields (``options.py``). This module is the only reader of the
environment. Values are the user's; what follows from them and from the checkpoint is a ``LaunchSpec``.
"""

import os
import re
from dataclasses import Field, dataclass, field, fields, replace
from pathlib import Path
from typing import Any, TypeVar, get_type_hints

from splitrank.comm.selection import BACKENDS, CODECS, AllReduceOptions
from splitrank.comm.stage_link import KINDS as STAGE_LINKS
from splitrank.models.dtypes import COMPUTED_DTYPES
from splitrank.serving.options.checked import INT64_MAX, Bounds, as_type, shown
from splitrank.serving.options.nodes import check_init_address, nodes_of

LOAD_FORMATS = ("auto", "dummy")
EXACT = ("auto", "on", "off")
PIN_THREADS = ("auto", "on", "off")
DEVICES = ("auto", "cpu", "cuda")  # cuda is also ROCm's
MOST_REQUESTS_AT_ONCE = 256  # of a step on a GPU
LEAST_BODY_BYTES = 64  # shorter than any request
REASONING_PARSERS = ("qwen3", "none")
TOOL_CALL_PARSERS = ("qwen3_coder", "none")
_ORIGIN = re.compile(r"[a-z][a-z0-9+.-]*:\/\/[^\s/?#]+")
LOG_LEVELS = ("debug", "info", "warning", "error")


# Every number has a finite limit, so that nothing that is computed from it overflows.
COUNT = Bounds(1, 2**31 - 1)
COUNT_OR_ZERO = Bounds(0, 2**31 - 1)
SECONDS = Bounds(0, 10**6, above=True)
MIB = Bounds(0, 2**24)


def option(default: Any, help: str, **metadata: Any) -> Any:
    """A config field: its default, its help line (empty: not shown), ``bounds`` of a number or of each one in a list,
    and ``choices``, ``metavar`` or ``aliases`` of the flag. A value that is ``secret`` is shown in no message, one that
    is ``required`` must be given."""
    return field(default=default, repr=not metadata.get("secret"), metadata={"help": help, **metadata})


def is_secret(declared: Field[Any]) -> bool:
    return bool(declared.metadata.get("secret"))


@dataclass(frozen=True, kw_only=True)
class Options:
    """Base of every command's options: checks what the fields declare. ``ValueError`` names the option."""

    def __post_init__(self) -> None:
        kinds = get_type_hints(type(self))
        for declared in fields(self):
            name, value = declared.name, getattr(self, declared.name)
            value = os.fspath(value) if isinstance(value, os.PathLike) else value
            value = as_type(name, value, kinds[name], is_secret=is_secret(declared))
            object.__setattr__(self, name, value)
            if declared.metadata.get("required") and not value:
                raise ValueError(f"--{name.replace('_', '-')} is required")
            if "choices" in declared.metadata and value not in declared.metadata["choices"]:
                raise ValueError(f"{name} must be one of {', '.join(declared.metadata['choices'])}, not {shown(value)}")
            if "bounds" in declared.metadata:
                for number in value if isinstance(value, tuple) else (value,):
                    declared.metadata["bounds"].check(name, number)


@dataclass(frozen=True, kw_only=True)
class LayoutConfig(Options):
    """The model, its split, and the load it is sized for: all that determines the bytes of a rank."""

    model: str = option(
        "", "checkpoint folder, or a hub id when online; the demo checkpoint if not given", aliases=("model-path",)
    )
    dtype: str = option("auto", "computing type; auto takes the checkpoint's", choices=("auto", *COMPUTED_DTYPES))
    tp: int = option(
        1, "tensor-parallel ranks a stage", bounds=Bounds(1, 1024), aliases=("tp-size", "tensor-parallel-size")
    )
    pp: int = option(1, "pipeline stages", bounds=Bounds(1, 1024), aliases=("pp-size", "pipeline-parallel-size"))
    pp_partition: tuple[int, ...] = option(
        (), "layers of each stage, e.g. 20,20; balanced by bytes if not given", bounds=COUNT_OR_ZERO
    )
    max_model_len: int = option(
        0,
        "longest prompt plus output in tokens; 0: the model's, at most 32768 and what fits",
        bounds=COUNT_OR_ZERO,
        aliases=("context-length",),
    )
    max_running_requests: int = option(
        0,
        "requests computed at once (one recurrent-state slot each); 0: 32, on a GPU up to 256 by its memory",
        bounds=Bounds(0, 2**20),
        aliases=("max-num-seqs",),
    )
    device: str = option("auto", "auto takes GPUs where there is one for each rank, else the CPU", choices=DEVICES)

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.max_model_len == 1:
            raise ValueError("max_model_len 1 leaves no room for a prompt and an answer; give at least 2")
        if self.pp_partition and len(self.pp_partition) != self.pp:
            raise ValueError(f"pp_partition names {len(self.pp_partition)} stages, but pp is {self.pp}")
        if self.pp_partition and min(self.pp_partition) < 1:
            raise ValueError(f"pp_partition {list(self.pp_partition)} leaves a stage without layers")


@dataclass(frozen=True)
class DeviceDefaults:
    """What 0 means on a kind of device."""

    max_running_requests: int
    mem_fraction_static: float
    chunked_prefill_size: int
    max_prefill_tokens: int


CPU_DEFAULTS = DeviceDefaults(32, 0.6, 512, 512)
GPU_DEFAULTS = DeviceDefaults(MOST_REQUESTS_AT_ONCE, 0.9, 2048, 8192)


@dataclass(frozen=True, kw_only=True)
class EngineConfig(LayoutConfig):
    """Options of every command that runs the model. ``0`` means: derived from the model and the machine."""

    devices: tuple[int, ...] = option(
        (), "GPU of each rank, e.g. 0,1; the first ones if not given", bounds=COUNT_OR_ZERO
    )
    share_devices: bool = option(False, "let several ranks share a GPU, to compare layouts where there are few")
    prompt_graphs: str = option(
        "auto",
        "on a GPU, compute a short prompt that has a step of its own as a CUDA graph; auto: unless --exact is on",
        choices=("auto", "on", "off"),
    )
    threads_per_rank: int = option(
        0, "threads of a rank; 0: cores divided by ranks, at least 1", bounds=Bounds(0, 1024)
    )
    pin_threads: str = option(
        "auto",
        "each thread of the own kernels on a core of its own; auto: if the ranks' threads are as many as the cores",
        choices=PIN_THREADS,
    )
    exact: str = option(
        "auto",
        "the same bits in any layout, batch and number of threads; auto: on a CPU alone; on: refuses what cannot be",
        choices=EXACT,
    )
    max_queued_requests: int = option(4096, "requests waiting beyond those; more are refused with 503", bounds=COUNT)
    page_size: int = option(64, "tokens of one KV page", bounds=Bounds(1, 2**20), aliases=("block-size",))
    num_pages: int = option(
        0, "KV pages; 0: what the memory fraction holds, at most what all requests can use", bounds=COUNT_OR_ZERO
    )
    mem_fraction_static: float = option(
        0.0,
        "part of the memory for weights, KV pages and states of all ranks; 0: 0.6, on a GPU 0.9",
        bounds=Bounds(0, 1),
        aliases=("gpu-memory-utilization",),
    )
    chunked_prefill_size: int = option(
        0,
        "prefill chunk in tokens; chunks end at absolute multiples of it; 0: 512, on a GPU 2048",
        bounds=Bounds(0, 2**20),
    )
    max_prefill_tokens: int = option(
        0,
        "prompt tokens of one step, of several requests; 0: as many as a chunk has, on a GPU 8192",
        bounds=Bounds(0, 2**24),
    )
    prefix_cache_mib: int = option(
        512,
        "host memory of a rank for states of prompt prefixes that requests share; 0: compute every prompt whole",
        bounds=MIB,
    )
    seed: int = option(
        0, "for answers without a seed of their own; serve gives each a random one", bounds=Bounds(0, INT64_MAX)
    )
    load_format: str = option(
        "auto", "dummy: weights from the config alone, for measuring without a checkpoint", choices=LOAD_FORMATS
    )
    verify_weights: bool = option(
        False, "before serving, compare every loaded weight with the checkpoint, read again in a slow, simple way"
    )
    load_timeout_s: float = option(1800.0, "limit for loading the weights", bounds=SECONDS)
    step_timeout_s: float = option(300.0, "limit for one step of all ranks", bounds=SECONDS)
    heartbeat_timeout_s: float = option(
        15.0, "a rank or host that is silent for longer counts as dead", bounds=SECONDS, aliases=("heartbeat-timeout",)
    )
    all_reduce: str = option(
        "auto", "sums over tensor ranks; auto takes what was measured to be fastest, by message size", choices=BACKENDS
    )
    all_reduce_codec: str = option(
        "none", "integers as which large messages of the quick all-reduce are sent; changes answers", choices=CODECS
    )
    stage_link: str = option(
        "auto",
        "how stages send states and tokens: device, from GPU memory to GPU memory of one host; nccl, between GPUs of "
        "any hosts; socket, through the hosts' memory; auto: device where each stage has a GPU of its own on one host, "
        "nccl between GPUs of several",
        choices=STAGE_LINKS,
    )
    log_level: str = option("info", "log level", choices=LOG_LEVELS)
    nnodes: int = option(
        0,
        "hosts, with as many stages each; the same command runs on all; from the launcher's environment if not given",
        bounds=Bounds(0, 1024),
    )
    node_rank: int = option(0, "number of this host; 0 has the front and the engine", bounds=Bounds(0, 1023))
    dist_init_addr: str = option(
        "", "HOST:PORT of host 0, where the others join it and their ranks reach the engine", metavar="HOST:PORT"
    )
    bind: str = option("", "address this host listens on for other hosts; the one it reaches host 0 by if not given")
    secret_file: str = option(
        "",
        "file that holds the secret of all hosts, 16 bytes at least; from SPLITRANK_SECRET if not given",
        metavar="FILE",
    )
    join_timeout_s: float = option(600.0, "limit for all hosts to join", bounds=SECONDS, aliases=("join-timeout",))

    @property
    def num_nodes(self) -> int:
        return self.nnodes or 1

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.node_rank >= self.num_nodes:
            raise ValueError(f"node_rank {self.node_rank}: {self.num_nodes} hosts are numbered from 0 (--nnodes)")
        if self.nnodes > 1:
            check_init_address(self.dist_init_addr, self.nnodes)
        AllReduceOptions(self.all_reduce, self.all_reduce_codec)
        if self.load_format == "dummy" and self.verify_weights:
            raise ValueError("load_format dummy: there is nothing that --verify-weights could read again")
        # The delta rule works in blocks of 64 tokens: a chunk that ends inside a block would change its bits.
        if self.chunked_prefill_size % 64:
            raise ValueError(f"chunked_prefill_size must be a multiple of 64, not {self.chunked_prefill_size}")
        if 0 < self.chunked_prefill_size < 64:
            raise ValueError(f"chunked_prefill_size must be at least 64, not {self.chunked_prefill_size}")
        chunk = self.chunked_prefill_size or 64
        if 0 < self.max_prefill_tokens < chunk:
            raise ValueError(
                f"max_prefill_tokens {self.max_prefill_tokens} is less than a chunk: give at least "
                f"chunked_prefill_size = {chunk}, or 0"
            )

    def check_concurrency(self, *concurrency: int) -> None:
        """For commands that keep ``concurrency`` requests open: ``ValueError`` if the engine would refuse some."""
        room = (self.max_running_requests or CPU_DEFAULTS.max_running_requests) + self.max_queued_requests
        if max(concurrency, default=0) > room:
            raise ValueError(
                f"concurrency must be at most max_running_requests + max_queued_requests = {room}, "
                f"not {max(concurrency)}"
            )


EngineOptions = TypeVar("EngineOptions", bound=EngineConfig)


@dataclass(frozen=True, kw_only=True)
class ServedModelConfig(EngineConfig):
    """Options of the commands whose requests name the model."""

    served_model_name: str = option("", "the model's name in requests; the checkpoint folder's name if not given")
    reasoning_parser: str = option(
        "qwen3", "parts thoughts from a chat's answer; none: they stay in its content", choices=REASONING_PARSERS
    )
    tool_call_parser: str = option(
        "qwen3_coder",
        "finds tool calls in a chat's answer; none: they stay in its content",
        choices=TOOL_CALL_PARSERS,
    )
    chat_template_kwargs: str = option(
        "", 'variables of the chat template that a request need not give, as JSON: {"enable_thinking": false}'
    )
    clip_max_tokens: bool = option(False, "max_tokens beyond what the context leaves are cut, not refused with 400")


@dataclass(frozen=True, kw_only=True)
class ServeConfig(ServedModelConfig):
    """``splitrank serve``."""

    host: str = option("127.0.0.1", "address to listen on")
    port: int = option(8000, "port to listen on; 0: any free one, printed at start", bounds=Bounds(0, 65535))
    api_key: tuple[str, ...] = option(
        (),
        "clients must send one of these as a bearer token; may be given again; also from SPLITRANK_API_KEY, one a line",
        secret=True,
    )
    api_key_file: str = option("", "file of API keys, one a line; # begins a comment", metavar="FILE")
    allowed_origins: tuple[str, ...] = option(
        (), "web pages from there may ask, as https://example.org, or * for all (CORS)", aliases=("cors-origins",)
    )
    max_body_bytes: int = option(
        0,
        "larger request bodies are refused with 413; 0: 32 bytes a token of the context, at least 4 MiB",
        bounds=Bounds(0, 2**40),
    )
    body_timeout_s: float = option(30.0, "a body that takes longer to arrive is refused with 408", bounds=SECONDS)
    send_timeout_s: float = option(
        60.0, "a client that takes nothing of its answer for so long is dropped", bounds=SECONDS
    )
    max_connections: int = option(
        0,
        "more connections are refused with 503; 0: as many as the file descriptors allow (ulimit -n)",
        bounds=COUNT_OR_ZERO,
    )
    keep_alive_timeout_s: float = option(
        75.0,
        "idle connections are closed after it; choose it longer than a proxy or client pool keeps them",
        bounds=SECONDS,
    )
    drain_timeout_s: float = option(20.0, "on SIGTERM, open requests get this long to finish", bounds=Bounds(0, 10**6))

    def __post_init__(self) -> None:
        super().__post_init__()
        if 0 < self.max_body_bytes < LEAST_BODY_BYTES:
            raise ValueError(f"max_body_bytes must be at least {LEAST_BODY_BYTES}, or 0, not {self.max_body_bytes}")
        if not all(map(str.strip, self.api_key)):
            raise ValueError("api_key is empty, as from an unset variable: give a value or leave it out")
        for origin in self.allowed_origins:
            if origin != "*" and not _ORIGIN.fullmatch(origin):
                raise ValueError(
                    f"allowed_origins must be like https://example.org, without a path, not {shown(origin)}"
                )


def api_keys(config: ServeConfig) -> tuple[str, ...]:
    """Those of flags and file; if there are none, those of the environment, where other users do not see them in the
    process list. Empty: everybody may ask. Raises ``ValueError`` for a file without keys."""
    keys = [*config.api_key, *_keys_of_file(config.api_key_file)] or os.environ.get(
        "SPLITRANK_API_KEY", ""
    ).splitlines()
    return tuple(dict.fromkeys(key.strip() for key in keys if key.strip()))


def hosts_secret(file: str) -> bytes:
    """What hosts prove to each other to know: of the file, else of the environment. ``ValueError`` if there is none."""
    try:
        secret = Path(file).read_bytes() if file else os.environb.get(b"SPLITRANK_SECRET", b"")
    except OSError as error:
        raise ValueError(f"secret_file {file} cannot be read: {error.strerror or error}") from None
    if not secret.strip():
        raise ValueError("several hosts need a secret: give --secret-file or SPLITRANK_SECRET, the same on all hosts")
    return secret.strip()


def with_launcher_options(config: EngineOptions) -> EngineOptions:
    """The config with what torchrun, srun or LeaderWorkerSet say of the hosts, where the user has said nothing."""
    if config.nnodes:
        return config
    told = nodes_of(os.environ)
    if told and config.dist_init_addr:
        told["dist_init_addr"] = config.dist_init_addr
    if config.dist_init_addr and not told:
        raise ValueError(f"dist_init_addr {config.dist_init_addr} is of several hosts: give --nnodes and --node-rank")
    return replace(config, **told)


def _keys_of_file(file: str) -> list[str]:
    if not file:
        return []
    try:
        lines = Path(file).read_text("utf-8-sig", errors="surrogateescape").splitlines()
    except OSError as error:
        raise ValueError(f"api_key_file {file} cannot be read: {error.strerror or error}") from None
    keys = [line for line in map(str.strip, lines) if line and not line.startswith("#")]
    if not keys:
        raise ValueError(f"api_key_file {file} holds no key")
    return keys


def child_environment() -> dict[str, str]:
    """Environment of engine and rank processes: loopback for gloo, unbuffered output, a malloc that keeps pages, and
    threads that spin for 1 ms at most. The user's own settings for malloc, the threads and NCCL stay.

    By default, torch ends a process by SIGABRT when NCCL has failed. Here a rank says who has left (``group_link.py``).

    A step allocates and frees the same megabytes again and again. By default malloc maps and unmaps them each time: a
    prefill of 512 tokens took 0.35 s instead of 0.30. The threads of an operation wait for each other thousands of
    times a step. libgomp's default of 300,000 spins (10 ms) is longer than the time slice of a process that has taken
    one of their cores, and keeps a core busy between steps. 30,000 spins are as fast; ``rank/thread_wait.py`` reduces
    them on shared cores.
    """
    loopback = {"GLOO_SOCKET_IFNAME": "lo", "TP_SOCKET_IFNAME": "lo"}
    nccl = {
        "TORCH_NCCL_ASYNC_ERROR_HANDLING": "0",
        "TORCH_NCCL_ENABLE_MONITORING": "0",
        "TORCH_NCCL_DUMP_ON_TIMEOUT": "0",
    }
    waiting = {} if "OMP_WAIT_POLICY" in os.environ else {"GOMP_SPINCOUNT": "30000"}
    malloc = {"MALLOC_MMAP_THRESHOLD_": str(32 * 2**20), "MALLOC_TRIM_THRESHOLD_": str(512 * 2**20)}
    return {
        **malloc,
        **waiting,
        **nccl,
        **os.environ,
        **loopback,
        "PYTHONUNBUFFERED": "1",
        "TOKENIZERS_PARALLELISM": "false",
    }
