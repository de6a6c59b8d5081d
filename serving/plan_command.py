"""``splitrank plan`` and ``splitrank inspect``: what a layout and a checkpoint hold, from headers alone."""

from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path

from splitrank.models.checkpoint import Checkpoint
from splitrank.models.config import FULL, ModelConfig, read_config
from splitrank.models.dtypes import DTYPES
from splitrank.models.memory import GIB, RankMemory, plan_all_ranks, rank_memory
from splitrank.models.rounding import ceil_div
from splitrank.models.sharding import check_partition, check_tensor_parallel
from splitrank.models.tensor_names import fused_expert_name
from splitrank.models.tied_head import describe_head, settle_head
from splitrank.serving.launch.model_files import model_folder
from splitrank.serving.launch.resolve import choose_partition, computing_dtype, wanted_length
from splitrank.serving.options.checked import Bounds
from splitrank.serving.options.config import CPU_DEFAULTS, GPU_DEFAULTS, LayoutConfig, Options, option


@dataclass(frozen=True, kw_only=True)
class PlanConfig(LayoutConfig):
    """``splitrank plan``."""

    memory_gib: float = option(
        0.0,
        "memory of one rank in GiB; then the plan says what fits, and refuses what cannot",
        bounds=Bounds(0, 10**6),
    )
    link_gbps: float = option(
        0.0,
        "10^9 bits a second between two stages, as serve measures them between hosts; then the plan says what a stage "
        "border costs a step",
        bounds=Bounds(0, 10**6),
    )
    link_ms: float = option(
        0.0, "delay of that link in one direction, half of the round trip that serve measures", bounds=Bounds(0, 10**6)
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.link_ms and not self.link_gbps:
            raise ValueError("link_ms: give --link-gbps, too")


@dataclass(frozen=True, kw_only=True)
class InspectConfig(Options):
    """``splitrank inspect``."""

    model: str = option(
        "", "checkpoint folder, or a hub id when online; the demo checkpoint if not given", aliases=("model-path",)
    )


def run_plan(config: PlanConfig) -> int:
    """Prints the plan; exit code 0. Raises ``ValueError`` for a layout that the model does not allow."""
    path = Path(config.model) if config.model.endswith(".json") else model_folder(config.model)
    config = replace(config, max_running_requests=config.max_running_requests or _requests_at_once(config))
    model = read_config(path)
    check_tensor_parallel(model, config.tp)
    check_partition(model.num_hidden_layers, config.pp, config.pp_partition or None)
    dtype, length = computing_dtype(config.dtype, model), wanted_length(config, model)
    # A bare config.json, or a folder without weights, is planned from the shapes alone.
    checkpoint = None
    if any(path.glob("*.safetensors*")):
        model, checkpoint = settle_head(path, model)
    partition = choose_partition(config, model, dtype, length, _target(config))
    plans = plan_all_ranks(model, config.tp, partition, dtype, checkpoint)
    ranks = [rank_memory(model, plan, dtype, _target(config)) for plan in plans]
    for line in plan_lines(config, model, ranks, dtype, length):
        print(line)
    return 0


def _target(config: PlanConfig) -> str:
    """A plan asks no machine: ``auto`` is a CPU."""
    return "cuda" if config.device == "cuda" else "cpu"


def _requests_at_once(config: PlanConfig) -> int:
    return (GPU_DEFAULTS if _target(config) == "cuda" else CPU_DEFAULTS).max_running_requests


def plan_lines(
    config: PlanConfig, model: ModelConfig, ranks: list[RankMemory], dtype: str, length: int
) -> Iterator[str]:
    """The printed plan."""
    total = sum(rank.weight_bytes for rank in ranks)
    yield (
        f"{model.num_hidden_layers} layers ({model.layer_types.count(FULL)} full attention), {dtype}, "
        f"tp {config.tp} x pp {config.pp}: weights {total:,} bytes ({total / GIB:.2f} GiB) in all"
    )
    yield (
        f"balanced for {config.max_running_requests} requests of {length:,} tokens"
        if not config.pp_partition
        else "partition by hand"
    )
    yield "rank stage tp  layers     weight bytes     GiB KV B/token state B/request"
    for rank in ranks:
        stage, position = rank.stage, rank.position
        yield (
            f"{position.rank:>4} {position.pp_rank:>5} {position.tp_rank:>2} {f'{stage.start}-{stage.stop - 1}':>7} "
            f"{rank.weight_bytes:>16,} {rank.weight_bytes / GIB:>7.2f} {rank.kv_bytes_per_token:>10,} "
            f"{rank.state_bytes_per_request:>15,}"
        )
    if config.memory_gib:
        yield from _capacity_lines(config, model, ranks, length)
    else:
        full = max(
            ranks, key=lambda rank: rank.total(length * config.max_running_requests, config.max_running_requests)
        )
        need = full.total(length * config.max_running_requests, config.max_running_requests)
        yield f"stage {full.stage.pp_rank} limits: {need / GIB:.2f} GiB a rank for that (--memory-gib: what fits)"
    if config.link_gbps and config.pp > 1:
        yield from link_lines(config, model, dtype)


def link_lines(config: PlanConfig, model: ModelConfig, dtype: str) -> Iterator[str]:
    """What a border between stages costs: hidden state and residual of every token, from each tensor rank to its peer.

    A request's next token waits for all borders: those that its states cross, and the one over which the sampled token
    returns to the first stage.
    """
    token_bytes = 2 * model.hidden_size * DTYPES[dtype].num_bytes * config.tp
    defaults = GPU_DEFAULTS if _target(config) == "cuda" else CPU_DEFAULTS
    rows = ceil_div(config.max_running_requests, config.pp)
    yield f"a stage border at {config.link_gbps:g} Gb/s and {config.link_ms:g} ms, {token_bytes:,} B a token:"
    decode_ms = _crossing_ms(config, rows * token_bytes)
    for name, tokens in (("decode", rows), ("prefill", defaults.max_prefill_tokens)):
        num_bytes = tokens * token_bytes
        yield f"  {name} of {tokens} tokens: {num_bytes / 1e6:.3f} MB, {_crossing_ms(config, num_bytes):.3f} ms a step"
    added_ms = (config.pp - 1) * decode_ms + config.link_ms
    yield f"  each token of a request waits {added_ms:.3f} ms for {config.pp} borders, while all stages keep up"


def _crossing_ms(config: PlanConfig, num_bytes: int) -> float:
    return config.link_ms + num_bytes * 8 / (config.link_gbps * 1e9) * 1e3


def _capacity_lines(config: PlanConfig, model: ModelConfig, ranks: list[RankMemory], length: int) -> Iterator[str]:
    budget = int(config.memory_gib * GIB)
    for rank in ranks:
        if (rank.tokens_that_fit(budget, 1) or 0) < 0:
            raise ValueError(
                f"{rank.position} needs {rank.total(0, 1) / GIB:.2f} GiB for weights and one request's state, "
                f"--memory-gib is {config.memory_gib:g}"
            )
    context, by_context = min((_largest_context(rank, budget, model), n) for n, rank in enumerate(ranks))
    requests, by_requests = min((_largest_concurrency(rank, budget, length), n) for n, rank in enumerate(ranks))
    yield f"in {config.memory_gib:g} GiB a rank:"
    yield f"  largest context of one request: {context:,} tokens ({_limit(ranks, by_context, context, model)})"
    limit = f"stage {ranks[by_requests].stage.pp_rank} limits"
    yield f"  largest concurrency at {length:,} tokens: {requests:,} requests ({limit})"


def _limit(ranks: list[RankMemory], number: int, context: int, model: ModelConfig) -> str:
    if context == model.context_length:
        return "the model's positions"
    return f"stage {ranks[number].stage.pp_rank} limits"


def _largest_context(rank: RankMemory, budget: int, model: ModelConfig) -> int:
    tokens = rank.tokens_that_fit(budget, 1)
    return model.context_length if tokens is None else min(tokens, model.context_length)


def _largest_concurrency(rank: RankMemory, budget: int, length: int) -> int:
    per_request = rank.state_bytes_per_request + length * rank.kv_bytes_per_token
    return (budget - rank.weight_bytes) // max(per_request, 1)


def run_inspect(config: InspectConfig) -> int:
    """Prints what a checkpoint holds; exit code 0. Raises ``ValueError`` for one that cannot be served."""
    folder = model_folder(config.model)
    declared = read_config(folder)
    model, checkpoint = settle_head(folder, declared)
    for line in inspect_lines(checkpoint, model, describe_head(declared, model.tie_word_embeddings)):
        print(line)
    return 0


def inspect_lines(checkpoint: Checkpoint, model: ModelConfig, head: str) -> Iterator[str]:
    """Files, experts' form, ``head``, dtypes, and what is ignored and why."""
    entries = checkpoint.tensors.values()
    loaded = sum(entry.num_bytes for entry in entries)
    headers = sum(checkpoint.header_bytes.values())
    kinds = Counter(model.layer_types)
    yield f"{checkpoint.folder}: {len(checkpoint.header_bytes)} file(s), {headers:,} bytes of headers"
    yield f"layers: {model.num_hidden_layers} ({', '.join(f'{count} {kind}' for kind, count in sorted(kinds.items()))})"
    forms = _expert_forms(checkpoint, model)
    yield f"experts: {model.num_experts} routed, {model.num_experts_per_tok} a token; stored {forms}"
    yield f"head: {head}"
    stretch = "" if model.yarn is None else f" (YaRN, factor {model.yarn.factor:g})"
    yield f"vocabulary: {model.vocab_size:,}; positions: {model.context_length:,}{stretch}; config dtype: {model.dtype}"
    yield f"text tensors: {len(checkpoint.tensors):,}, {loaded:,} bytes ({loaded / GIB:.2f} GiB)"
    for dtype, count in sorted(Counter(entry.dtype for entry in entries).items()):
        yield f"  {dtype}: {count:,} tensors"
    for rule, count in sorted(Counter(checkpoint.ignored.values()).items()):
        yield f"ignored: {count:,} tensors ({rule})"


def _expert_forms(checkpoint: Checkpoint, model: ModelConfig) -> str:
    forms = Counter(
        "fused" if fused_expert_name(layer, projection) in checkpoint.tensors else "per expert"
        for layer in range(model.num_hidden_layers)
        for projection in ("gate_up_proj", "down_proj")
    )
    return " and ".join(
        f"{form} ({count} of {sum(forms.values())} projections)" for form, count in sorted(forms.items())
    )
