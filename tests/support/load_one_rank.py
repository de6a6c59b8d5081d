"""A process that loads one rank and tells what that cost: prints JSON with bytes. Arguments: folder, pp, tp, rank."""

import json
import sys
from pathlib import Path

import torch

from splitrank.models.checkpoint import open_checkpoint
from splitrank.models.config import read_config
from splitrank.models.layers.parameter import prepare
from splitrank.models.loader import load_weights
from splitrank.models.memory import plan_all_ranks
from splitrank.models.ops.cpu.exact import ExactOperations
from splitrank.models.qwen3_5 import Stage
from splitrank.models.sharding import equal_partition


def resident_bytes(field: str) -> int:
    """``VmRSS`` (now) or ``VmHWM`` (the peak)."""
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith(field + ":"):
            return int(line.split()[1]) * 1024
    raise AssertionError(field)


def main(folder: Path, pp: int, tp: int, rank: int) -> None:
    torch.set_num_threads(1)
    after_imports = resident_bytes("VmRSS")
    config = read_config(folder)
    checkpoint, partition = open_checkpoint(folder, config), equal_partition(config.num_hidden_layers, pp)
    plan = plan_all_ranks(config, tp, partition, "bfloat16", checkpoint)[rank]
    ops = ExactOperations(plan.shard, 1)
    stage = Stage(config, plan.stage, partition, plan.shard, torch.bfloat16, ops)
    load_weights(stage, plan, checkpoint)
    prepare(stage, ops)
    extra = resident_bytes("VmHWM") - after_imports
    print(json.dumps({"local_bytes": plan.num_bytes, "peak_extra_bytes": extra}))


if __name__ == "__main__":
    main(Path(sys.argv[1]), *map(int, sys.argv[2:]))
