"""The peak while loading and packing a checkpoint of more than half a GB: the rank's own bytes and little more."""

import json
import subprocess
import sys
from collections.abc import Iterator
from itertools import accumulate
from math import prod
from pathlib import Path
from typing import Any

import pytest

from splitrank.models.config import parse_config
from splitrank.models.tensor_names import dense_shapes, expert_name, expert_shapes, fused_expert_name
from tests.support.checkpoints import hub_config, random_text_config
from tests.support.limits import PROGRAM_S, scaled
from tests.support.raw_safetensors import write_raw

MIB = 2**20
LARGE: dict[str, Any] = {
    "num_hidden_layers": 4,
    "hidden_size": 512,
    "num_experts": 96,
    "moe_intermediate_size": 512,
    "shared_expert_intermediate_size": 512,
}


def shapes(raw: dict[str, Any], fused: bool) -> Iterator[tuple[str, tuple[int, ...]]]:
    config = parse_config(raw)
    experts = expert_shapes(config)
    yield from dense_shapes(config)
    for layer in range(config.num_hidden_layers):
        if fused:
            yield from ((fused_expert_name(layer, name), experts[name]) for name in ("gate_up_proj", "down_proj"))
            continue
        for expert in range(config.num_experts):
            for name in ("gate_proj", "up_proj", "down_proj"):
                yield expert_name(layer, expert, name), experts["one down_proj" if name == "down_proj" else name]


def write_sparse_checkpoint(folder: Path, fused: bool, vocab_size: int) -> int:
    """A checkpoint of holes, which read as zeros and take no disk; returns its bytes."""
    raw = hub_config(random_text_config(**LARGE, vocab_size=vocab_size), "text", "bfloat16", tied=False)
    (folder / "config.json").write_text(json.dumps(raw))
    sizes = {name if name.startswith("lm_head") else "model." + name: shape for name, shape in shapes(raw, fused)}
    ends = list(accumulate(2 * prod(shape) for shape in sizes.values()))
    header = {
        name: {"dtype": "BF16", "shape": list(shape), "data_offsets": [end - 2 * prod(shape), end]}
        for (name, shape), end in zip(sizes.items(), ends, strict=True)
    }
    file = folder / "model.safetensors"
    write_raw(file, header, b"")
    with file.open("r+b") as stream:
        stream.truncate(file.stat().st_size + ends[-1])
    return ends[-1]


# Of the vocabulary's rows of 1 KiB, 32 MiB are just packed, which takes both layouts at once; 64 MiB are more than may
# be read in one block.
@pytest.mark.parametrize(
    ("pp", "tp", "rank", "fused", "vocab_size"),
    [(2, 1, 1, True, 32768), (2, 1, 0, False, 65536), (1, 2, 1, True, 65536), (1, 2, 1, False, 131072)],
)
def test_loading_takes_the_rank_s_bytes_and_64_mib_at_most(
    tmp_path: Path, pp: int, tp: int, rank: int, fused: bool, vocab_size: int
) -> None:
    total = write_sparse_checkpoint(tmp_path, fused, vocab_size)
    assert total >= 5 * 10**8
    command = [sys.executable, "-m", "tests.support.load_one_rank", str(tmp_path), str(pp), str(tp), str(rank)]
    root = Path(__file__).parents[2]
    finished = subprocess.run(command, cwd=root, capture_output=True, text=True, timeout=scaled(PROGRAM_S))
    assert finished.returncode == 0, finished.stderr
    measured = json.loads(finished.stdout)
    assert total * 0.4 < measured["local_bytes"] < total * 0.6
    assert measured["local_bytes"] <= measured["peak_extra_bytes"] <= measured["local_bytes"] + 64 * MIB
