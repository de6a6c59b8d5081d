"""From the user's config to the launch spec: what follows from the checkpoint's headers and from the machine.

Everything that can be wrong with a checkpoint or a layout is found here, before any process is started.
"""

from dataclasses import dataclass

from splitrank.comm.selection import AllReduceOptions
from splitrank.models.checkpoint import Checkpoint
from splitrank.models.config import ModelConfig, read_config
from splitrank.models.dtypes import COMPUTED_DTYPES
from splitrank.models.memory import GIB, RankMemory, balanced_partition, plan_all_ranks, rank_memory
from splitrank.models.rounding import pages_needed
from splitrank.models.sharding import check_partition, check_tensor_parallel
from splitrank.models.tied_head import settle_head
from splitrank.models.weight_plan import WeightPlan, audit_plan, audit_union
from splitrank.serving.launch.machine import usable_cores, usable_memory_bytes
from splitrank.serving.launch.model_files import model_folder
from splitrank.serving.launch.stop_tokens import stop_tokens
from splitrank.serving.options.config import EngineConfig, LayoutConfig
from splitrank.serving.protocol.messages import LaunchSpec

# Without --max-model-len: long enough for most uses; the full 262,144 of the large models only on request, since the
# partition is balanced for it and each request may claim that many pages.
DEFAULT_MAX_MODEL_LEN = 32768


def resolve_launch(config: EngineConfig) -> LaunchSpec:
    """Checks the checkpoint and the layout, and sizes pages and slots. Raises ``ValueError`` with one line."""
    folder = model_folder(config.model)
    model = read_config(folder)
    check_tensor_parallel(model, config.tp)
    AllReduceOptions(config.all_reduce, config.all_reduce_codec).check_tensor_parallel(config.tp)
    check_partition(model.num_hidden_layers, config.pp, config.pp_partition or None)
    dtype = computing_dtype(config.dtype, model)
    model, checkpoint = settle_head(folder, model)
    length = wanted_length(config, model)
    partition = choose_partition(config, model, dtype, length)
    plans = _audited_plans(model, config.tp, partition, dtype, checkpoint)
    ranks = [rank_memory(model, plan, dtype) for plan in plans]
    capacity = size_cache(config, ranks, length)
    return LaunchSpec(
        run_dir="",
        model_dir=str(folder.resolve()),
        dtype=dtype,
        tp_size=config.tp,
        pp_size=config.pp,
        partition=partition,
        tie_word_embeddings=model.tie_word_embeddings,
        threads_per_rank=config.threads_per_rank or max(1, usable_cores() // (config.tp * config.pp)),
        all_reduce=config.all_reduce,
        all_reduce_codec=config.all_reduce_codec,
        max_model_len=capacity.max_model_len,
        max_running_requests=config.max_running_requests,
        page_size=config.page_size,
        num_pages=capacity.num_pages,
        chunked_prefill_size=config.chunked_prefill_size,
        max_prefill_tokens=config.max_prefill_tokens or config.chunked_prefill_size,
        max_queued_requests=config.max_queued_requests,
        prefix_cache_bytes=config.prefix_cache_mib * 2**20,
        state_bytes=max(rank.state_bytes_per_request for rank in ranks),
        kv_page_bytes=max(rank.kv_bytes_per_token for rank in ranks) * config.page_size,
        vocab_size=model.vocab_size,
        eos_token_ids=tuple(stop_tokens(folder, model.vocab_size)),
        seed=config.seed,
        load_timeout_s=config.load_timeout_s,
        step_timeout_s=config.step_timeout_s,
        heartbeat_timeout_s=config.heartbeat_timeout_s,
        verify_weights=config.verify_weights,
        log_level=config.log_level,
        show_progress=True,
    )


def computing_dtype(dtype: str, model: ModelConfig) -> str:
    """``auto`` is the checkpoint's dtype, if a rank can compute in it."""
    if dtype != "auto":
        return dtype
    if model.dtype not in COMPUTED_DTYPES:
        allowed = " or ".join(COMPUTED_DTYPES)
        raise ValueError(f"the checkpoint is {model.dtype}, which is not computed in; give --dtype {allowed}")
    return model.dtype


def wanted_length(config: LayoutConfig, model: ModelConfig) -> int:
    """Longest prompt plus output, before memory is considered."""
    if config.max_model_len > model.context_length:
        raise ValueError(f"max_model_len {config.max_model_len} exceeds the model's {model.context_length} positions")
    return config.max_model_len or min(model.context_length, DEFAULT_MAX_MODEL_LEN)


def choose_partition(config: LayoutConfig, model: ModelConfig, dtype: str, length: int) -> tuple[int, ...]:
    """The user's partition, or the one balanced by bytes at this length and concurrency."""
    if config.pp_partition:
        return config.pp_partition
    tokens = length * config.max_running_requests
    return balanced_partition(model, config.tp, config.pp, dtype, tokens, config.max_running_requests)


def _audited_plans(
    model: ModelConfig, tp_size: int, partition: tuple[int, ...], dtype: str, checkpoint: Checkpoint
) -> list[WeightPlan]:
    plans = plan_all_ranks(model, tp_size, partition, dtype, checkpoint)
    for plan in plans:
        audit_plan(plan)
    audit_union(plans, checkpoint)
    return plans


@dataclass(frozen=True)
class Capacity:
    """KV pages of every rank, and the longest request they can hold."""

    num_pages: int
    max_model_len: int


def size_cache(config: EngineConfig, ranks: list[RankMemory], length: int, memory_bytes: int = 0) -> Capacity:
    """Pages that fit the fullest rank; raises ``ValueError`` with the numbers if not even one request fits."""
    memory_bytes = memory_bytes or usable_memory_bytes()
    per_request = pages_needed(length, config.page_size)
    useful = per_request * config.max_running_requests
    if config.num_pages:
        _check_pages(config, ranks, memory_bytes)
    pages = config.num_pages or _pages_that_fit(config, ranks, memory_bytes, useful)
    if pages >= per_request:
        return Capacity(pages, length)
    if config.max_model_len or pages < 1:
        raise ValueError(
            f"{pages} KV pages of {config.page_size} tokens cannot hold one request of {length} tokens: "
            "lower --max-model-len or --max-running-requests, or raise --mem-fraction-static or --num-pages"
        )
    if pages * config.page_size < 2:
        raise ValueError("1 KV pages of 1 tokens hold no prompt and answer: raise --page-size or --num-pages")
    return Capacity(pages, pages * config.page_size)


def _check_pages(config: EngineConfig, ranks: list[RankMemory], memory_bytes: int) -> None:
    """The user's number of pages may pass the memory fraction, not the memory."""
    need = sum(rank.total(config.num_pages * config.page_size, config.max_running_requests) for rank in ranks)
    if need > memory_bytes:
        raise ValueError(
            f"{config.num_pages} KV pages of {config.page_size} tokens need {need / GIB:.2f} GiB with weights and "
            f"states of all {len(ranks)} ranks, but this machine has {memory_bytes / GIB:.2f} GiB: lower --num-pages"
        )


def _pages_that_fit(config: EngineConfig, ranks: list[RankMemory], memory_bytes: int, useful: int) -> int:
    budget = int(memory_bytes * config.mem_fraction_static) // len(ranks)
    pages = useful
    for memory in ranks:
        tokens = memory.tokens_that_fit(budget, config.max_running_requests)
        if tokens is None:
            continue
        if tokens < 0:
            need = memory.total(0, config.max_running_requests) / GIB
            raise ValueError(
                f"{memory.position} needs {need:.2f} GiB for weights and "
                f"{config.max_running_requests} recurrent states, but has {budget / GIB:.2f} GiB "
                f"(mem_fraction_static {config.mem_fraction_static:g} of the memory, shared by {len(ranks)} ranks)"
            )
        pages = min(pages, tokens // config.page_size)
    return pages
