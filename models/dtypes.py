"""The one table of weight dtypes: their names in ``config.json`` and in safetensors, and their bytes. No torch."""

from dataclasses import dataclass


@dataclass(frozen=True)
class Dtype:
    """``name`` is that of ``config.json`` and of torch, ``stored_name`` that of safetensors."""

    name: str
    stored_name: str
    num_bytes: int  # of one element
    is_computed: bool  # a rank can hold its weights in it and compute with them


_ROWS = (
    Dtype("bfloat16", "BF16", 2, is_computed=True),
    # Weights may be stored as float16, but its range is too small for the state of the recurrent layers.
    Dtype("float16", "F16", 2, is_computed=False),
    Dtype("float32", "F32", 4, is_computed=True),
)
DTYPES = {row.name: row for row in _ROWS}
STORED_DTYPES = {row.stored_name: row for row in _ROWS}
COMPUTED_DTYPES = tuple(row.name for row in _ROWS if row.is_computed)
