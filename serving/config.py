"""The options of every command: one frozen dataclass each, the only place an option is stated.

Flags, TOML keys and ``--help`` are generated from the fields (``options.py``). This module is the only reader of the
environment. Values are the user's; what follows from them and from the checkpoint is a ``LaunchSpec``.
"""

import math
import os
from dataclasses import dataclass, field
from typing import Any

from splitrank.comm.selection import BACKENDS, CODECS, AllReduceOptions

DTYPES = ("auto", "bfloat16", "float32")
LOG_LEVELS = ("debug", "info", "warning", "error")


def option(default: Any, help: str, **metadata: Any) -> Any:
    """A config field: its default, its help line, and ``choices``, ``metavar`` or ``aliases`` of the flag."""
    return field(default=default, metadata={"help": help, **metadata})


@dataclass(frozen=True, kw_only=True)
class LayoutConfig:
    """The model, its split, and what it is sized for: all that decides the bytes of a rank."""

    model: str = option(
        "", "checkpoint folder, or a hub id when online; the demo checkpoint if not given", aliases=("model-path",)
    )
    dtype: str = option("auto", "computing type; auto takes the checkpoint's", choices=DTYPES)
    tp: int = option(1, "tensor-parallel ranks a stage", aliases=("tp-size", "tensor-parallel-size"))
    pp: int = option(1, "pipeline stages", aliases=("pp-size", "pipeline-parallel-size"))
    pp_partition: tuple[int, ...] = option((), "layers of each stage, e.g. 20,20; balanced by bytes if not given")
    max_model_len: int = option(0, "longest prompt plus output in tokens; 0: the model's, at most 32768 and what fits")
    max_running_requests: int = option(32, "requests computed at once (one recurrent-state slot each)")

    def __post_init__(self) -> None:
        _at_least(self, 1, "tp", "pp", "max_running_requests")
        _at_least(self, 0, "max_model_len")
        _one_of(self, dtype=DTYPES)
        if self.pp_partition and len(self.pp_partition) != self.pp:
            raise ValueError(f"pp_partition names {len(self.pp_partition)} stages, but pp is {self.pp}")
        if self.pp_partition and min(self.pp_partition) < 1:
            raise ValueError(f"pp_partition {list(self.pp_partition)} leaves a stage without layers")


@dataclass(frozen=True, kw_only=True)
class EngineConfig(LayoutConfig):
    """What every command that runs the model shares. ``0`` means: derive it from the model and the machine."""

    threads_per_rank: int = option(0, "torch threads of a rank; 0: cores divided by ranks, at least 1")
    max_queued_requests: int = option(4096, "requests waiting beyond those; more are refused with 503")
    page_size: int = option(64, "tokens of one KV page")
    num_pages: int = option(0, "KV pages; 0: what the memory fraction holds, at most what all requests can use")
    mem_fraction_static: float = option(0.6, "share of the memory for weights, KV pages and states of all ranks")
    chunked_prefill_size: int = option(512, "prefill chunk in tokens; chunks end at absolute multiples of it")
    prefix_cache_mib: int = option(
        512, "host memory of a rank for states of prompt prefixes that requests share; 0: compute every prompt whole"
    )
    seed: int = option(0, "seed of requests that give none is drawn from this one")
    load_timeout_s: float = option(1800.0, "limit for loading the weights")
    step_timeout_s: float = option(300.0, "limit for one step of all ranks")
    heartbeat_timeout_s: float = option(15.0, "a rank silent for longer is taken for dead")
    all_reduce: str = option(
        "auto", "sums over tensor ranks; auto takes what was measured to be fastest, by message size", choices=BACKENDS
    )
    all_reduce_codec: str = option(
        "none", "integers that large messages of the quick all-reduce travel as; changes answers", choices=CODECS
    )
    log_level: str = option("info", "log level", choices=LOG_LEVELS)

    def __post_init__(self) -> None:
        super().__post_init__()
        AllReduceOptions(self.all_reduce, self.all_reduce_codec)
        _at_least(self, 1, "max_queued_requests", "page_size", "chunked_prefill_size")
        _at_least(self, 0, "threads_per_rank", "num_pages", "seed", "prefix_cache_mib")
        for name in ("load_timeout_s", "step_timeout_s", "heartbeat_timeout_s"):
            if not getattr(self, name) > 0:
                raise ValueError(f"{name} must be above 0, not {getattr(self, name)}")
        _one_of(self, log_level=LOG_LEVELS)
        if not 0.0 < self.mem_fraction_static <= 1.0:
            raise ValueError(f"mem_fraction_static must be above 0 and at most 1, not {self.mem_fraction_static}")
        # The delta rule works in blocks of 64 tokens: a chunk that ends inside a block would change its bits.
        if self.chunked_prefill_size % 64:
            raise ValueError(f"chunked_prefill_size must be a multiple of 64, not {self.chunked_prefill_size}")


def _at_least(config: LayoutConfig, low: int, *names: str) -> None:
    for name in names:
        if getattr(config, name) < low:
            bound = f"be at least {low}" if low else "not be negative"
            raise ValueError(f"{name} must {bound}, not {getattr(config, name)}")


def _one_of(config: LayoutConfig, **allowed: tuple[str, ...]) -> None:
    for name, values in allowed.items():
        if getattr(config, name) not in values:
            raise ValueError(f"{name} must be one of {', '.join(values)}, not {getattr(config, name)!r}")


@dataclass(frozen=True, kw_only=True)
class ServeConfig(EngineConfig):
    """``splitrank serve``."""

    host: str = option("127.0.0.1", "address to listen on")
    port: int = option(8000, "port to listen on; 0: any free one, printed at start")
    api_key: str = option("", "clients must send it as a bearer token; also from SPLITRANK_API_KEY")
    served_model_name: str = option("", "the model's name for clients; the checkpoint folder's name if not given")
    max_body_bytes: int = option(
        0, "larger request bodies are refused with 413; 0: 32 bytes a token of the context, at least 4 MiB"
    )
    body_timeout_s: float = option(30.0, "a body that takes longer to arrive is refused with 408")
    keep_alive_timeout_s: float = option(
        75.0, "idle connections are closed after it; choose it longer than a proxy or client pool keeps them"
    )
    drain_timeout_s: float = option(20.0, "on SIGTERM, open requests get this long to finish")

    def __post_init__(self) -> None:
        super().__post_init__()
        _at_least(self, 0, "max_body_bytes")
        if not 0 < self.keep_alive_timeout_s < math.inf:
            raise ValueError(f"keep_alive_timeout_s must be above 0, not {self.keep_alive_timeout_s}")
        if not 0 <= self.port < 65536:
            raise ValueError(f"port must be between 0 and 65535, not {self.port}")


def environment_api_key() -> str:
    """API key for ``serve`` when no flag gives one: kept out of the process list."""
    return os.environ.get("SPLITRANK_API_KEY", "")


def child_environment() -> dict[str, str]:
    """Environment of engine and rank processes: loopback for gloo, unbuffered output, a malloc that keeps pages.

    A step allocates and frees the same megabytes over and over. malloc's defaults map and unmap them each time: a
    prefill of 512 tokens took 0.35 s instead of 0.30.
    """
    loopback = {"GLOO_SOCKET_IFNAME": "lo", "TP_SOCKET_IFNAME": "lo"}
    malloc = {"MALLOC_MMAP_THRESHOLD_": str(32 * 2**20), "MALLOC_TRIM_THRESHOLD_": str(512 * 2**20)}
    return {**malloc, **os.environ, **loopback, "PYTHONUNBUFFERED": "1", "TOKENIZERS_PARALLELISM": "false"}
