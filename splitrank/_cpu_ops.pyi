"""The CPU's operations with one order of summation (csrc/bindings/cpu_ops.cc). Addresses and codes, unchecked: use
``splitrank.models.ops.cpu.exact``."""

from collections.abc import Sequence

SHARDS: int  # virtual shards of a row-parallel product
PANEL: int  # outputs of a weight that lie together
MOST_HEAD: int

Span = tuple[int, int, int, int, int]  # first row, rows, tokens before them, slot, address of the page table

def instruction_sets() -> list[str]: ...

class Weight:
    """A weight [num_outputs, num_inputs]; ``bounds`` of its shards."""

    def __init__(
        self,
        data: int,
        dtype: int,
        num_outputs: int,
        num_inputs: int,
        bounds: Sequence[int],
        is_packed: bool = True,
    ) -> None: ...
    @property
    def num_panels(self) -> int: ...
    @property
    def panel_elements(self) -> int: ...

class Values:
    """Rows of float32 (0) or bfloat16 (1), ``stride`` elements apart."""

    def __init__(self, data: int, dtype: int, stride: int, /) -> None: ...

class Norm:
    def __init__(self, scale: int, eps: float, /) -> None: ...

class Stream:
    def __init__(
        self, hidden: Values, residual: Values, residual_out: Values, num_rows: int, width: int, norm: Norm, /
    ) -> None: ...

class DeltaLayer:
    def __init__(
        self,
        key_heads: int,
        value_heads: int,
        key_dim: int,
        value_dim: int,
        num_taps: int,
        taps: int,
        decay_rate: int,
        dt_bias: int,
        norm: Norm,
        conv_states: Values,
        delta_states: int,
        /,
    ) -> None: ...

class AttentionLayer:
    def __init__(
        self,
        num_heads: int,
        num_kv_heads: int,
        head_dim: int,
        rotary_dim: int,
        q_norm: Norm,
        k_norm: Norm,
        keys: int,
        values: int,
        dtype: int,
        page_size: int,
        /,
    ) -> None: ...

class ExpertsLayer:
    def __init__(
        self,
        num_experts: int,
        top_k: int,
        inner: int,
        shared_inner: int,
        router: Weight,
        shared_gate_up: Weight,
        shared_down: Weight,
        gate_up: Weight,
        down: Weight,
        gate_up_bytes: int,
        down_bytes: int,
        /,
    ) -> None: ...

class Layer:
    """A decoder layer of a rank that has no tensor peers; ``first`` and ``last`` are its mixer's products."""

    def __init__(
        self,
        mixer_norm: Norm,
        first: Weight,
        mixer: DeltaLayer | AttentionLayer,
        last: Weight,
        experts_norm: Norm,
        experts: ExpertsLayer,
        /,
    ) -> None: ...

class Operations:
    """A rank's threads, of which the caller is one. One call at a time."""

    def __init__(self, num_threads: int, instruction_set: str = "") -> None: ...
    @property
    def instruction_set(self) -> str: ...
    @property
    def num_threads(self) -> int: ...
    def pin(self, cores: list[int]) -> None: ...
    def linear(self, x: Values, num_rows: int, weight: Weight, out: Values, /) -> None: ...
    def add_norm_linear(self, stream: Stream, weight: Weight, out: Values, /) -> None: ...
    def experts(self, stream: Stream, layer: ExpertsLayer, out: Values, /) -> None: ...
    def delta(
        self, projected: Values, num_rows: int, spans: Sequence[Span], layer: DeltaLayer, out: Values, /
    ) -> None: ...
    def attention(
        self,
        projected: Values,
        num_rows: int,
        spans: Sequence[Span],
        kv_index: int,
        cos_sin: int,
        layer: AttentionLayer,
        out: Values,
        /,
    ) -> None: ...
    def layers(
        self,
        layers: Sequence[Layer],
        hidden: Values,
        residual: Values,
        num_rows: int,
        width: int,
        spans: Sequence[Span],
        kv_index: int,
        cos_sin: int,
        /,
    ) -> None: ...
    def greedy(self, logits: int, num_rows: int, num_logits: int, tokens: int, largest: int, /) -> None: ...
    def cos_sin(
        self, positions: int, num_rows: int, frequencies: int, half: int, scale: float, out: int, /
    ) -> None: ...
    def pack(self, source: int, weight: Weight, interleaved: bool, packed: int, /) -> None: ...
