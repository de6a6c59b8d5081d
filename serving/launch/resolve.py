"""From the user's config to the launch spec: what follows from the checkpoint's headers and from the machine.

Everything that can be wrong with a checkpoint or a layout is found here, before any process is started.
"""

import os
from dataclasses import replace
from typing import Any

from splitrank.comm.handshake import check_secret
from splitrank.comm.selection import AllReduceOptions
from splitrank.comm.stage_link import refuse_stage_link
from splitrank.models.checkpoint import Checkpoint
from splitrank.models.config import ModelConfig, read_config
from splitrank.models.dtypes import COMPUTED_DTYPES
from splitrank.models.exactness import check_exact_gpu_shapes, check_exact_shapes, inexact_because
from splitrank.models.gpu_limits import check_gpu_shapes
from splitrank.models.memory import RankMemory, balanced_partition, plan_all_ranks, rank_memory
from splitrank.models.sharding import check_partition, check_tensor_parallel
from splitrank.models.tied_head import settle_head
from splitrank.models.weight_plan import WeightPlan, audit_plan, audit_union
from splitrank.serving.launch.capacity import Capacity, gpu_memory, host_memory, size_cache
from splitrank.serving.launch.devices import Devices, choose_devices
from splitrank.serving.launch.machine import usable_cores
from splitrank.serving.launch.model_files import model_folder
from splitrank.serving.launch.stop_tokens import stop_tokens
from splitrank.serving.options.config import (
    CPU_DEFAULTS,
    GPU_DEFAULTS,
    MOST_REQUESTS_AT_ONCE,
    EngineConfig,
    LayoutConfig,
    hosts_secret,
)
from splitrank.serving.protocol.messages import LaunchSpec

# Without --max-model-len: long enough for most uses; the full 262,144 of the large models only on request, since the
# partition is balanced for it and each request may claim that many pages.
DEFAULT_MAX_MODEL_LEN = 32768


def resolve_launch(config: EngineConfig) -> LaunchSpec:
    """Checks the checkpoint and the layout, and sizes pages and slots. Raises ``ValueError`` with one line."""
    folder = model_folder(config.model)
    model = read_config(folder)
    check_nodes(config)
    check_tensor_parallel(model, config.tp)
    AllReduceOptions(config.all_reduce, config.all_reduce_codec).check_tensor_parallel(config.tp)
    check_partition(model.num_hidden_layers, config.pp, config.pp_partition or None)
    dtype = computing_dtype(config.dtype, model)
    checkpoint = None
    if config.load_format != "dummy":
        model, checkpoint = settle_head(folder, model)
    length = wanted_length(config, model)
    devices = choose_devices(config)
    check_on_device(config, model, dtype, devices.target)
    config = with_defaults(config, devices.target)
    partition = choose_partition(config, model, dtype, length, devices.target)
    plans = _audited_plans(model, config.tp, partition, dtype, checkpoint)
    ranks = [rank_memory(model, plan, dtype, devices.target) for plan in plans]
    try:
        capacity = _host_capacity(config, ranks, length, devices)
    except ValueError as error:
        raise ValueError(f"{error}{_layouts_that_fit(config, model, dtype, devices)}") from None
    return LaunchSpec(
        run_dir="",
        model_dir=str(folder.resolve()),
        dtype=dtype,
        tp_size=config.tp,
        pp_size=config.pp,
        partition=partition,
        tie_word_embeddings=model.tie_word_embeddings,
        **_thread_fields(config, devices.target),
        **_device_fields(config, devices),
        all_reduce=config.all_reduce,
        all_reduce_codec=config.all_reduce_codec,
        max_model_len=capacity.max_model_len,
        max_running_requests=capacity.max_running_requests,
        page_size=config.page_size,
        num_pages=capacity.num_pages,
        chunked_prefill_size=config.chunked_prefill_size,
        max_prefill_tokens=config.max_prefill_tokens,
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
        load_format=config.load_format,
        verify_weights=config.verify_weights,
        log_level=config.log_level,
        show_progress=True,
        **_node_fields(config),
    )


def _host_capacity(config: EngineConfig, ranks: list[RankMemory], length: int, devices: Devices) -> Capacity:
    """What fits the fullest rank of this host."""
    per_node = len(ranks) // config.num_nodes
    local = ranks[config.node_rank * per_node : (config.node_rank + 1) * per_node]
    memory = gpu_memory(config, devices) if devices.target == "cuda" else host_memory(config, len(local))
    return size_cache(config, local, length, memory)


def _no_prompt_graphs(config: EngineConfig, target: str) -> str:
    """Why there are none, whatever was asked for; empty: there may be."""
    if target != "cuda":
        return "it is for GPUs"
    return "with --exact on prompts have kernels of their own" if config.exact == "on" else ""


def _device_fields(config: EngineConfig, devices: Devices) -> dict[str, Any]:
    """The fields of the spec that say where ranks compute, and how."""
    return {
        "exact": config.exact == "on" or (config.exact == "auto" and devices.target == "cpu"),
        "device": devices.target,
        "devices": devices.numbers * config.num_nodes,
        "stage_link": config.stage_link,
        "prompt_graphs": config.prompt_graphs != "off" and not _no_prompt_graphs(config, devices.target),
    }


def _node_fields(config: EngineConfig) -> dict[str, Any]:
    """The fields of the spec that say which host of how many this is, and how they find each other."""
    return {
        "num_nodes": config.num_nodes,
        "node_rank": config.node_rank,
        "init_address": config.dist_init_addr,
        "bind": config.bind,
        "secret_file": config.secret_file,
        "join_timeout_s": config.join_timeout_s,
    }


def check_nodes(config: EngineConfig) -> None:
    """``ValueError`` if the layout cannot be spread over the hosts: each has as many whole stages."""
    if config.pp % config.num_nodes:
        raise ValueError(
            f"tp {config.tp} x pp {config.pp} over {config.num_nodes} hosts: tensor ranks stay within a host, and each "
            f"host has as many stages; give --pp {config.num_nodes} or a multiple of it"
        )
    if config.num_nodes > 1:
        check_secret(hosts_secret(config.secret_file))


def check_on_device(config: EngineConfig, model: ModelConfig, dtype: str, target: str) -> None:
    """``ValueError`` if the options or the model's sizes cannot be had on this kind of device."""
    refuse_stage_link(config.stage_link, target, config.pp, config.num_nodes)
    if config.prompt_graphs == "on" and (why := _no_prompt_graphs(config, target)):
        raise ValueError(f"prompt_graphs: {why}")
    check_exact(config, model, target)
    if target == "cuda":
        check_gpu_shapes(model, config.tp, dtype)
        most = MOST_REQUESTS_AT_ONCE * config.pp
        if config.max_running_requests > most:
            raise ValueError(
                f"max_running_requests {config.max_running_requests}: on a GPU a step has at most "
                f"{MOST_REQUESTS_AT_ONCE} decode rows, so pp {config.pp} runs at most {most} requests"
            )


def check_exact(config: EngineConfig, model: ModelConfig, target: str) -> None:
    """``ValueError`` if exactness was asked for and the layout cannot give it, or the kernels cannot take the model."""
    if config.exact != "off" and target == "cpu":
        check_exact_shapes(model)
    reason = inexact_because(target, config.tp, AllReduceOptions(config.all_reduce, config.all_reduce_codec))
    if config.exact == "on" and reason:
        raise ValueError(f"exact on: {reason}; give another layout, or --exact auto")
    if config.exact == "on" and target == "cuda":
        check_exact_gpu_shapes(model, config.tp)


def _thread_fields(config: EngineConfig, target: str) -> dict[str, Any]:
    threads = config.threads_per_rank or max(1, usable_cores() * config.num_nodes // (config.tp * config.pp))
    return {"threads_per_rank": threads, "pin_threads": pins_threads(config, target, threads)}


def pins_threads(config: EngineConfig, target: str, threads: int) -> bool:
    """Whether each thread has a core of its own; ``ValueError`` if that was asked for and cannot be.

    Where cores are left over, others may run on some of them, and the system knows better which are free. A quota names
    no cores, so it does not count here.
    """
    wanted, usable = threads * config.tp * config.pp // config.num_nodes, len(os.sched_getaffinity(0))
    has_own_threads = target == "cpu" and config.exact != "off"
    if config.pin_threads == "on" and not has_own_threads:
        raise ValueError("pin_threads on: only the threads of the CPU's own kernels are pinned, so not with exact off")
    if config.pin_threads == "on" and wanted > usable:
        raise ValueError(
            f"pin_threads on: {wanted} threads of all ranks, but {usable} cores; give fewer threads_per_rank"
        )
    return has_own_threads and (config.pin_threads == "on" or (config.pin_threads == "auto" and wanted == usable))


def is_exact(spec: LaunchSpec) -> bool:
    """Whether the layout gives the same bits as every other exact one."""
    all_reduce = AllReduceOptions(spec.all_reduce, spec.all_reduce_codec)
    return spec.exact and not inexact_because(spec.device, spec.tp_size, all_reduce)


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


def choose_partition(config: LayoutConfig, model: ModelConfig, dtype: str, length: int, target: str) -> tuple[int, ...]:
    """The user's partition, or the one balanced by bytes at this length and concurrency on this kind of device."""
    if config.pp_partition:
        return config.pp_partition
    requests = config.max_running_requests or MOST_REQUESTS_AT_ONCE
    return balanced_partition(model, config.tp, config.pp, dtype, length * requests, requests, target)


def _audited_plans(
    model: ModelConfig, tp_size: int, partition: tuple[int, ...], dtype: str, checkpoint: Checkpoint | None
) -> list[WeightPlan]:
    plans = plan_all_ranks(model, tp_size, partition, dtype, checkpoint)
    for plan in plans:
        audit_plan(plan)
    if checkpoint is not None:
        audit_union(plans, checkpoint)
    return plans


def _layouts_that_fit(config: EngineConfig, model: ModelConfig, dtype: str, devices: Devices) -> str:
    """For a message: the fewest GPUs of this kind that hold the weights and a request's state, over stages or ranks."""
    if not devices.gpus:
        return ""
    budget = int(devices.gpus[0].total_bytes * config.mem_fraction_static) - config.prefix_cache_mib * 2**20
    found = []
    for pp, tp in ((2, 1), (1, 2), (4, 1), (1, 4), (8, 1), (1, 8)):
        try:
            partition = balanced_partition(model, tp, pp, dtype, 0, 1, "cuda")
            plans = plan_all_ranks(model, tp, partition, dtype)
        except ValueError:  # the model's heads or layers do not divide so
            continue
        if all(rank_memory(model, plan, dtype, "cuda").total(config.page_size, 1) <= budget for plan in plans):
            found.append(f"--pp {pp}" if tp == 1 else f"--tp {tp}")
        if len(found) == 2:
            break
    return f"; would fit on such GPUs: {', '.join(found)}" if found else ""


def with_defaults(config: EngineConfig, target: str) -> EngineConfig:
    """The user's options, and what 0 means on this kind of device. Requests at once on a GPU stay 0: see its memory."""
    is_gpu = target == "cuda"
    defaults = GPU_DEFAULTS if is_gpu else CPU_DEFAULTS
    most = config.max_prefill_tokens // 64 * 64 or defaults.chunked_prefill_size
    chunk = config.chunked_prefill_size or min(defaults.chunked_prefill_size, most)
    return replace(
        config,
        max_running_requests=config.max_running_requests or (0 if is_gpu else defaults.max_running_requests),
        mem_fraction_static=config.mem_fraction_static or defaults.mem_fraction_static,
        chunked_prefill_size=chunk,
        max_prefill_tokens=config.max_prefill_tokens or (max(chunk, defaults.max_prefill_tokens) if is_gpu else chunk),
    )
