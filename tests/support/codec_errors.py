"""What each codec does to a model's own activations.

``python -m tests.support.codec_errors [FOLDER] [DTYPE]`` prints a table.

Two tensor ranks run as threads. Their row-parallel partial sums are kept, and summed again by the compiled quick
all-reduce with every codec. Errors are relative: Euclidean norm of the difference over that of the exact sum.
"""

import sys
import threading
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch

from splitrank.comm.native import ALGORITHM_CODES, CODEC_CODES, load_module
from splitrank.comm.quick_reduce import DTYPE_CODES
from splitrank.models.cache import StageCache
from splitrank.models.checkpoint import open_checkpoint
from splitrank.models.config import read_config
from splitrank.models.layers.parameter import prepare
from splitrank.models.loader import load_weights
from splitrank.models.ops.cpu.operations import CpuOperations
from splitrank.models.qwen3_5 import Stage
from splitrank.models.rounding import pages_needed
from splitrank.models.sharding import TensorShard, equal_partition, stage_slice
from splitrank.models.torch_dtype import torch_dtype
from splitrank.models.weight_plan import plan_weights
from splitrank.serving.rank.batch_builder import make_batch
from tests.support.quick_reduce_spec import error_bound
from tests.support.stage_runner import NUM_PAGES, PAGE_SIZE, Sequence, make_table, random_tokens, relative_error

TP_SIZE, NUM_TOKENS = 2, 128
TIMEOUT_S = 60.0


class ThreadRanks:
    """``Collectives`` of ranks that are threads; keeps what each brought to every sum."""

    def __init__(self) -> None:
        self.partial_sums: list[list[torch.Tensor]] = [[] for _ in range(TP_SIZE)]
        self._given: list[torch.Tensor] = [torch.empty(0)] * TP_SIZE
        self._barrier = threading.Barrier(TP_SIZE, timeout=TIMEOUT_S)

    def exchange(self, rank: int, tensor: torch.Tensor) -> list[torch.Tensor]:
        self._given[rank] = tensor.clone()
        self._barrier.wait()
        given = list(self._given)
        self._barrier.wait()
        return given


@dataclass
class ThreadRank:
    """One rank's end."""

    ranks: ThreadRanks
    rank: int
    size: int = TP_SIZE

    def all_reduce_(self, tensor: torch.Tensor) -> torch.Tensor:
        self.ranks.partial_sums[self.rank].append(tensor.clone())
        return tensor.copy_(sum(part.float() for part in self.ranks.exchange(self.rank, tensor)))

    def all_gather_columns(self, tensor: torch.Tensor, widths: tuple[int, ...]) -> torch.Tensor:
        return torch.cat(self.ranks.exchange(self.rank, tensor), dim=-1)

    def check(self) -> None:
        pass

    def close(self) -> None:
        pass


def in_threads(action: Callable[[int], object]) -> None:
    """``action(rank)`` for all ranks at once; the first error is raised here."""
    errors: list[BaseException] = []

    def run(rank: int) -> None:
        try:
            action(rank)
        except BaseException as error:
            errors.append(error)

    threads = [threading.Thread(target=run, args=(rank,)) for rank in range(TP_SIZE)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    if errors:
        raise errors[0]


def partial_sums(folder: Path, dtype: str) -> dict[str, list[torch.Tensor]]:
    """What the ranks bring to each sum of a prefill of random tokens, by place."""
    config, ranks = read_config(folder), ThreadRanks()
    partition = equal_partition(config.num_hidden_layers, 1)
    whole, checkpoint, kind = stage_slice(0, 1, partition), open_checkpoint(folder, config), torch_dtype(dtype)
    tokens = random_tokens(NUM_TOKENS, config.vocab_size)
    share = Sequence(1, 0, list(range(pages_needed(NUM_TOKENS, PAGE_SIZE)))).take(tokens)

    @torch.inference_mode()
    def run(rank: int) -> None:
        shard = TensorShard(rank, TP_SIZE)
        ops = CpuOperations()
        model = Stage(config, whole, partition, shard, kind, ops)
        load_weights(model, plan_weights(config, whole, shard, dtype, checkpoint), checkpoint, lambda num_bytes: None)
        memory = StageCache(config, whole, shard, kind, NUM_PAGES, PAGE_SIZE, 1, ops)
        prepare(model, ops)
        table = make_table()
        model(make_batch(table, [], [share.enter(table)]).batch, None, memory, ThreadRank(ranks, rank))

    in_threads(run)
    places = ["embedding"]
    for layer, name in enumerate(config.layer_types):
        places += [f"layer {layer} {name}", f"layer {layer} experts"]
    sums = [list(parts) for parts in zip(*ranks.partial_sums, strict=True)]
    return dict(zip(places, sums, strict=True))


def quick_sum(parts: list[torch.Tensor], codec: str) -> torch.Tensor:
    """By the compiled all-reduce; the same bits on every rank."""
    module = load_module("cpu")
    ends = [module.Communicator(rank, TP_SIZE, 4, 65536) for rank in range(TP_SIZE)]
    handles = [end.handle() for end in ends]
    results = [part.contiguous().clone() for part in parts]

    def run(rank: int) -> None:
        ends[rank].open(handles, 4)
        address, codes = results[rank].data_ptr(), (CODEC_CODES[codec], ALGORITHM_CODES["one-shot"])
        dtype, limit = DTYPE_CODES[results[rank].dtype], int(TIMEOUT_S * 1e9)
        assert ends[rank].all_reduce(address, address, results[rank].numel(), dtype, *codes, limit), ends[
            rank
        ].failure()

    in_threads(run)
    assert torch.equal(results[0], results[1])
    for end in ends:
        end.close()
    return results[0]


@dataclass(frozen=True)
class CodecError:
    """Of one codec at one place."""

    relative: float
    worst_share: float  # of the derived bound that the worst element uses


def codec_error(parts: list[torch.Tensor], codec: str) -> CodecError:
    found, exact = quick_sum(parts, codec).double(), torch.stack(parts).double().sum(dim=0)
    share = (found - exact).abs() / error_bound(parts, codec, "one-shot").double()
    return CodecError(relative_error(found, exact), float(share.max()))


def main() -> None:
    folder = Path(sys.argv[1] if len(sys.argv) > 1 else "configs/demo")
    print(f"relative error of the sum over {TP_SIZE} ranks (share of the derived bound that the worst element uses)")
    print(f"{'':30}" + "".join(f"{codec:>20}" for codec in CODEC_CODES))
    for place, parts in partial_sums(folder, sys.argv[2] if len(sys.argv) > 2 else "bfloat16").items():
        errors = [codec_error(parts, codec) for codec in CODEC_CODES]
        print(f"{place:30}" + "".join(f"{f'{one.relative:.2e} ({one.worst_share:.2f})':>20}" for one in errors))


if __name__ == "__main__":
    main()
