"""How many requests and KV pages fit the memory of the ranks."""

from dataclasses import dataclass

from splitrank.models.memory import GIB, RankMemory
from splitrank.models.rounding import pages_needed
from splitrank.serving.launch.devices import Devices
from splitrank.serving.launch.machine import usable_memory_bytes
from splitrank.serving.options.config import EngineConfig

_STEPS = (256, 192, 128, 96, 64, 48, 32, 24, 16, 8, 4, 2, 1)  # decode rows of a step that a GPU is tried with


@dataclass(frozen=True)
class Memory:
    """Rank by rank: bytes for weights, states and pages, and the bytes that are there at all."""

    budgets: tuple[int, ...]
    limits: tuple[int, ...]
    share: str  # how a budget came about, for messages
    places: tuple[int, ...]  # ranks of one place share its memory: the host's, or a GPU's by its number
    num_scratch: int = 0  # slots and pages beyond those of requests


@dataclass(frozen=True)
class Capacity:
    """KV pages of every rank, the longest request they can hold, and how many requests are computed at once."""

    num_pages: int
    max_model_len: int
    max_running_requests: int


def host_memory(config: EngineConfig, num_ranks: int, memory_bytes: int = 0) -> Memory:
    """The memory of ranks that share this machine's evenly."""
    memory_bytes = memory_bytes or usable_memory_bytes()
    budget, fraction = int(memory_bytes * config.mem_fraction_static) // num_ranks, config.mem_fraction_static
    share = f"mem_fraction_static {fraction:g} of the memory, shared by {num_ranks} ranks"
    return Memory((budget,) * num_ranks, (memory_bytes // num_ranks,) * num_ranks, share, (0,) * num_ranks)


def gpu_memory(config: EngineConfig, devices: Devices) -> Memory:
    """The memory of ranks on GPUs, which also keep the snapshots of prompt prefixes."""
    ranks, snapshots = range(len(devices.numbers)), config.prefix_cache_mib * 2**20
    budgets = tuple(devices.budget_bytes(rank, config.mem_fraction_static) - snapshots for rank in ranks)
    limits = tuple(devices.budget_bytes(rank, 1.0) - snapshots for rank in ranks)
    names = ", ".join(sorted({gpu.name for gpu in devices.gpus}))
    share = (
        f"mem_fraction_static {config.mem_fraction_static:g} of {names}, less {config.prefix_cache_mib} MiB of prefixes"
    )
    return Memory(budgets, limits, share, devices.numbers, num_scratch=1)


def size_cache(config: EngineConfig, ranks: list[RankMemory], length: int, memory: Memory) -> Capacity:
    """What fits the fullest rank; raises ``ValueError`` with the numbers if not even one request fits."""
    requests = config.max_running_requests or _requests_that_fit(config, ranks, length, memory)
    per_request = pages_needed(length, config.page_size)
    if config.num_pages:
        _check_pages(config, ranks, requests, memory)
    pages = config.num_pages or _pages_that_fit(config, ranks, requests, memory, per_request * requests)
    if pages >= per_request:
        return Capacity(pages, length, requests)
    if config.max_model_len or pages < 1:
        raise ValueError(
            f"{pages} KV pages of {config.page_size} tokens cannot hold one request of {length} tokens: "
            "lower --max-model-len or --max-running-requests, or raise --mem-fraction-static or --num-pages"
        )
    if pages * config.page_size < 2:
        raise ValueError("1 KV pages of 1 tokens hold no prompt and answer: raise --page-size or --num-pages")
    return Capacity(pages, pages * config.page_size, requests)


def _requests_that_fit(config: EngineConfig, ranks: list[RankMemory], length: int, memory: Memory) -> int:
    """The most that leave at least half of what the weights leave to pages, or to one request of full length."""
    for rows in _STEPS:
        requests = rows * config.pp  # a step for each stage
        for rank, budget in zip(ranks, memory.budgets, strict=True):
            free = budget - rank.weight_bytes
            states = requests * rank.state_bytes_per_request
            if states > free / 2 or states + length * rank.kv_bytes_per_token > free:
                break
        else:
            return requests
    return config.pp


def _check_pages(config: EngineConfig, ranks: list[RankMemory], requests: int, memory: Memory) -> None:
    """The user's number of pages may pass the memory fraction, not the memory of the host or of any GPU."""
    for place in dict.fromkeys(memory.places):
        here = [number for number, other in enumerate(memory.places) if other == place]
        need = sum(_total(ranks[number], config.num_pages, config, requests, memory) for number in here)
        limit = sum(memory.limits[number] for number in here)
        if need > limit:
            names = ", ".join(str(ranks[number].position) for number in here)
            raise ValueError(
                f"{config.num_pages} KV pages of {config.page_size} tokens need {need / GIB:.2f} GiB with weights and "
                f"states of {names}, but there are {limit / GIB:.2f} GiB: lower --num-pages"
            )


def _total(rank: RankMemory, pages: int, config: EngineConfig, requests: int, memory: Memory) -> int:
    return rank.total((pages + memory.num_scratch) * config.page_size, requests + memory.num_scratch)


def _pages_that_fit(config: EngineConfig, ranks: list[RankMemory], requests: int, memory: Memory, useful: int) -> int:
    pages = useful
    for rank, budget in zip(ranks, memory.budgets, strict=True):
        tokens = rank.tokens_that_fit(budget, requests + memory.num_scratch)
        if tokens is None:
            continue
        if tokens < 0:
            need = _total(rank, 0, config, requests, memory) / GIB
            raise ValueError(
                f"{rank.position} needs {need:.2f} GiB for weights and "
                f"{requests} recurrent states, but has {budget / GIB:.2f} GiB ({memory.share})"
            )
        pages = min(pages, tokens // config.page_size - memory.num_scratch)
    return pages
