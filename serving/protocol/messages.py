"""Every message that crosses a process boundary, as one msgspec struct each. msgpack on the wire, never pickle.

front (HTTP, LLM)  --AddRequest, AbortRequest-->  engine  --StepPlan, Shutdown-->  every rank
front  <--EngineReady, RequestOutputs, EngineStats, EngineFailed--  engine
engine  <--RankReady, StepResult, Heartbeat, RankFailed--  every rank
"""

import hashlib

import msgspec

from splitrank.comm.position import ranks_of_host
from splitrank.models.rounding import ceil_div
from splitrank.serving.protocol.sampling_params import SamplingParams

# ---------------------------------------------------------------- start-up


class LaunchSpec(msgspec.Struct, frozen=True, kw_only=True):
    """What the launcher resolved from the config and the checkpoint's headers; the same file for engine and ranks."""

    run_dir: str  # 0700 folder: sockets, this spec, the rendezvous file
    model_dir: str
    dtype: str  # "bfloat16" or "float32"
    tp_size: int
    pp_size: int
    partition: tuple[int, ...]  # layers a stage
    tie_word_embeddings: bool  # as served: config.json's, unless a head that differs is stored
    threads_per_rank: int
    pin_threads: bool = False  # of the own kernels, each to a core of its own
    exact: bool = True  # sums have one order each; else a CPU takes torch's operations, a GPU other tiles
    digests: bool = False  # each sampled token comes with a digest of its logits
    trace_dir: str = ""  # each rank writes digests of all that its layers hand on into a file there; on a CPU only
    device: str = "cpu"  # or "cuda", which is also ROCm's
    devices: tuple[int, ...] = ()  # of each rank, where device is "cuda"
    all_reduce: str = "auto"  # "auto", "quick" or "torch"
    all_reduce_codec: str = "none"  # "none", "int8", "int6" or "int4"
    prompt_graphs: bool = False  # short prompts as CUDA graphs
    stage_link: str = "auto"  # "auto", "device", "nccl" or "socket"
    max_model_len: int  # tokens, prompt + output
    max_running_requests: int  # recurrent-state slots
    page_size: int  # tokens a KV page
    num_pages: int
    chunked_prefill_size: int  # chunks end at absolute multiples of it
    max_prefill_tokens: int  # of all chunks of a step; at least a chunk
    max_queued_requests: int
    prefix_cache_bytes: int = 0  # of a rank's host memory, for snapshots of prompt prefixes; 0: none are kept
    prefix_block_size: int = 64  # tokens: prefixes are whole blocks of them
    state_bytes: int = 0  # of one request on the fullest rank, and of one KV page there
    kv_page_bytes: int = 0
    vocab_size: int
    eos_token_ids: tuple[int, ...]
    seed: int
    load_timeout_s: float
    step_timeout_s: float
    heartbeat_timeout_s: float
    load_format: str = "auto"  # or "dummy"
    verify_weights: bool  # compare loaded weights with the files, read again
    log_level: str
    show_progress: bool
    front_pid: int = 0  # set by the launcher, like run_dir: children end when this process has ended
    num_nodes: int = 1  # hosts; each has as many stages
    node_rank: int = 0  # of the host that reads this spec
    init_address: str = ""  # host:port where host 0 waits for the others, as this host was told it
    bind: str = ""  # address that this host listens on; empty: the one by which it reaches the others
    secret_file: str = ""
    join_timeout_s: float = 0.0
    engine_address: str = ""  # host:port of the engine, for the ranks of other hosts
    links: dict[int, str] = {}  # host:port of each rank that listens for a stage on another host

    @property
    def world_size(self) -> int:
        return self.tp_size * self.pp_size

    @property
    def ranks_per_node(self) -> int:
        return self.world_size // self.num_nodes

    @property
    def local_ranks(self) -> range:
        """Those of this host."""
        return ranks_of_host(self.node_rank * self.ranks_per_node, self.ranks_per_node)

    @property
    def num_scratch(self) -> int:
        """Slots and pages beyond those of requests: one on a GPU, for rows that pad a step to the size of a graph."""
        return int(self.device == "cuda")

    @property
    def scratch_page(self) -> int | None:
        """The page behind those of requests."""
        return self.num_pages if self.num_scratch else None

    @property
    def max_decodes(self) -> int:
        """Decode rows of a step at most: the scheduler spreads running requests over a step for each stage."""
        return ceil_div(self.max_running_requests, self.pp_size)

    @property
    def max_in_flight(self) -> int:
        """Steps planned before the first result is back: one for each stage, and one more so that no stage waits."""
        return self.pp_size + 1


class RankReady(msgspec.Struct, frozen=True, tag=True):
    rank: int
    report: str  # one printable line: stage, layers, weight bytes planned = allocated, KV and state bytes
    stage_report: str = ""  # lines: how a stage of several tensor ranks sums over them; how stages are linked


class RankFailed(msgspec.Struct, frozen=True, tag=True):
    rank: int
    phase: str  # "load", "warm-up", "step 17", ...
    error: str  # one line


class Heartbeat(msgspec.Struct, frozen=True, tag=True):
    """Says that the process lives and what it does. A thread sends it, so a long step does not look like a death."""

    rank: int
    phase: str
    last_step: int


class EngineReady(msgspec.Struct, frozen=True, tag=True):
    reports: list[str]  # one line a rank, in rank order, then one a stage of several tensor ranks


class EngineFailed(msgspec.Struct, frozen=True, tag=True):
    """The engine cannot go on; every open request has ended with this error."""

    error: str


# ---------------------------------------------------------------- requests


class AddRequest(msgspec.Struct, frozen=True, tag=True):
    """``params`` of a sampled request have a seed. The front adds one where the user gave none (``seeds``)."""

    request_id: str
    prompt_token_ids: list[int]
    params: SamplingParams


class AbortRequest(msgspec.Struct, frozen=True, tag=True):
    request_id: str


class TokenLogprobs(msgspec.Struct, frozen=True):
    logprob: float  # of the chosen token
    top_ids: list[int]  # best alternatives, best first
    top_logprobs: list[float]
    rank: int = 0  # of a prompt's token among all, the likeliest is 1; sampled tokens have none


class RequestOutput(msgspec.Struct, frozen=True, tag=True):
    """New tokens of one request. The last output has a ``finish_reason``: "stop", "length", "abort" or "error"
    (``error`` says why).

    A token that stopped the request (end of sequence or a stop token id) is in ``token_ids`` and in ``stop_token_id``.
    """

    request_id: str
    token_ids: list[int]
    logprobs: list[TokenLogprobs] | None = None
    finish_reason: str | None = None
    stop_token_id: int | None = None
    error: str | None = None
    # "queue_full", "invalid_request", or a RowFailure's
    error_code: str | None = None
    num_cached_tokens: int = 0  # tokens of the prompt that a snapshot held
    prompt_logprobs: list[TokenLogprobs] | None = None  # of the prompt's next tokens, from its second one on
    digests: list[bytes] = []  # of each token's row of logits; none if the launch spec does not ask for them


class StepOutputs(msgspec.Struct, frozen=True, array_like=True):
    """The outputs of one step. ``request_ids`` and ``token_ids`` are of requests with one token and nothing else, but
    for the digests of their logits if the launch spec asks for them."""

    request_ids: list[str] = []
    token_ids: list[int] = []
    others: list[RequestOutput] = []
    digests: list[bytes] = []

    def all(self) -> list[RequestOutput]:
        """Each as an output, without ``num_cached_tokens`` for those that have a token only."""
        plain = zip(self.request_ids, self.token_ids, strict=True)
        outputs = [RequestOutput(request_id, [token]) for request_id, token in plain]
        if self.digests:
            digests = zip(outputs, self.digests, strict=True)
            outputs = [msgspec.structs.replace(output, digests=[digest]) for output, digest in digests]
        return outputs + self.others


class RequestOutputs(msgspec.Struct, frozen=True, tag=True):
    """What the engine has for the front, in order: one message for each turn, not for each request."""

    steps: list[StepOutputs]


class RankStats(msgspec.Struct, frozen=True):
    """What the engine last heard of a rank."""

    heartbeat_age_s: float  # when the statistics were made
    phase: str  # "load", "serve", "step 17", ...
    last_step: int  # finished, as of the heartbeat


QUEUE_TIME_BUCKETS_S = (
    0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0, 120.0, 300.0
)  # fmt: skip


class EngineStats(msgspec.Struct, frozen=True, tag=True):
    """Counters since start, and gauges; sent about once a second, and when the last open request has ended."""

    num_running: int
    num_waiting: int
    num_preempted: int  # now swapped out
    free_pages: int
    num_pages: int
    free_slots: int
    num_slots: int
    steps: int
    prompt_tokens: int  # computed
    generated_tokens: int
    preemptions: int
    aborts: int
    cached_tokens: int = 0  # of prompts: taken from snapshots
    uptime_s: float = 0.0  # of the engine process; rates are differences over differences of it
    num_stages: int = 1
    stage_busy_s: float = 0.0  # stage-seconds that steps in flight could fill, and could not: bounds (``Occupancy``)
    bubble_s: float = 0.0
    queue_time_counts: list[int] = []  # admitted requests by bucket of QUEUE_TIME_BUCKETS_S, not cumulative
    queue_time_s: float = 0.0  # the sum over them
    ranks: list[RankStats] = []  # in rank order; empty until all are ready


# ---------------------------------------------------------------- steps


class AdmittedRequest(msgspec.Struct, frozen=True, array_like=True):
    """A new row of the ranks' request table, with all that ranks need of the request until it is released."""

    slot: int  # row of the table, and recurrent-state slot
    request_number: int  # the engine's, never reused
    prompt_token_ids: list[int]
    params: SamplingParams
    start: int  # tokens of the prompt that are restored from a snapshot


class NewPages(msgspec.Struct, frozen=True, array_like=True):
    """KV pages that a row gets after those it has."""

    slot: int
    pages: list[int]


class ChunkPlan(msgspec.Struct, frozen=True, array_like=True):
    """The next ``num_tokens`` tokens of a row's prompt."""

    slot: int
    num_tokens: int
    sample: bool  # sample a token after the last one: the prompt ends here


class SwapPlan(msgspec.Struct, frozen=True, array_like=True):
    """A row with its state and pages is copied to host memory, or back into another slot and new pages."""

    request_number: int
    slot: int


class SnapshotPlan(msgspec.Struct, frozen=True, array_like=True):
    """State and pages of a row's first ``num_tokens`` tokens are copied to host memory, or back."""

    snapshot: int  # the engine's number of the snapshot, never reused
    num_tokens: int
    slot: int


class CompileGrammar(msgspec.Struct, frozen=True, tag=True):
    """Asks ranks that draw tokens to compile a grammar, before its request is admitted. It is in no order with
    plans."""

    request_id: str
    grammar: str


class GrammarCompiled(msgspec.Struct, frozen=True, tag=True):
    """It has been compiled, or cannot be: then the request's first token fails."""

    rank: int
    request_id: str


class StepPlan(msgspec.Struct, frozen=True, tag=True, omit_defaults=True):
    """What changes on the ranks with one step, and which rows the step computes. Every rank executes it in this order:

    keep finished rows, release, swap out, admit and swap in, add pages, restore snapshots, compute decodes and chunks,
    save snapshots of them, drop snapshots.

    The input of a decode is the row's last sampled token. A plan without decodes and chunks only tells idle ranks what
    to release and keep.
    """

    step: int  # 0, 1, 2, … without gaps
    previous_hash: str  # hash of the plan before it ("" for step 0); so the hashes form a chain
    decodes: list[int] = []  # slots
    chunks: list[ChunkPlan] = []
    pages: list[NewPages] = []
    admitted: list[AdmittedRequest] = []
    released: list[int] = []  # requests
    swap_out: list[SwapPlan] = []
    swap_in: list[SwapPlan] = []
    kept: list[SnapshotPlan] = []  # of finished requests, whose slots and pages this plan may give to others
    restored: list[SnapshotPlan] = []
    saved: list[SnapshotPlan] = []  # of running prompts, anywhere in the chunks that this step computes
    dropped: list[int] = []  # snapshots to forget

    @property
    def has_rows(self) -> bool:
        return bool(self.decodes or self.chunks)


def plan_hash(plan_bytes: bytes) -> str:
    """Hash of an encoded plan. It covers the previous hash, which is part of the bytes."""
    return hashlib.blake2b(plan_bytes, digest_size=8).hexdigest()


class RowFailure(msgspec.Struct, frozen=True, array_like=True):
    """Why a row has no token. ``code`` is "invalid_numbers" (the model's logits) or "sampling_failed" (our error)."""

    code: str
    reason: str  # one line


class StepResult(msgspec.Struct, frozen=True, tag=True):
    """From tensor rank 0 of the last stage: one token for each decode and each chunk with ``sample``, in that order.

    ``logprobs`` by row, of requests that asked for them. ``failures`` by row: the request ends with this error, and its
    token has no meaning. ``prompt_logprobs`` by request, of the tokens that follow each one of its chunk. ``digests``
    have one a token, of its row of logits (empty if it failed), or there are none.
    """

    step: int
    plan_hash: str
    token_ids: list[int]
    logprobs: dict[int, TokenLogprobs] = {}
    failures: dict[int, RowFailure] = {}
    prompt_logprobs: dict[int, list[TokenLogprobs]] = {}
    digests: list[bytes] = []


# ---------------------------------------------------------------- traces

EMBEDDING, LOGITS = -1, 2**31  # as numbers of layers: before and behind all of them


class TraceHead(msgspec.Struct, frozen=True):
    """The first line of a rank's file in ``LaunchSpec.trace_dir``. JSON lines."""

    rank: str  # its name


class TraceLine(msgspec.Struct, frozen=True):
    """What a half of a layer handed on in one step: for each token the engine's number of the request, the position in
    its sequence, and a digest of the numbers, behind the all-reduce and rounded to the model's dtype."""

    layer: int
    half: int  # 0: the mixer, 1: the experts
    rows: list[tuple[int, int, str]]


class Shutdown(msgspec.Struct, frozen=True, tag=True):
    """The receiver ends in order."""


FrontToEngine = AddRequest | AbortRequest | Shutdown
EngineToFront = EngineReady | EngineFailed | RequestOutputs | EngineStats
EngineToRank = StepPlan | CompileGrammar | Shutdown
RankToEngine = RankReady | RankFailed | Heartbeat | StepResult | GrammarCompiled
