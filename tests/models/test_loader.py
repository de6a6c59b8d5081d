"""Loading: the same parameters from every form of a checkpoint, each rank's right slices, and no byte too many."""

from functools import partial
from math import prod
from pathlib import Path
from typing import Any

import pytest
import torch

from splitrank.models import loader
from splitrank.models.checkpoint import open_checkpoint
from splitrank.models.config import ModelConfig, read_config
from splitrank.models.errors import CheckpointError
from splitrank.models.loader import load_weights
from splitrank.models.memory import plan_all_ranks
from splitrank.models.ops.cpu.operations import CpuOperations
from splitrank.models.qwen3_5 import Stage
from splitrank.models.torch_dtype import torch_dtype
from splitrank.models.weight_plan import Piece, WeightPlan
from tests.support.checkpoints import make_reference, random_text_config, round_to_bfloat16, write_checkpoint
from tests.support.expected_shards import expected_parameters
from tests.support.raw_safetensors import bytes_read_by, read_raw

LAYOUTS = [((5,), 1), ((5,), 2), ((5,), 4), ((2, 3), 1), ((1, 2, 2), 2)]  # partition, tp
Parameters = dict[str, torch.Tensor]


class Folder:
    """A checkpoint on disk, and what each rank makes of it."""

    def __init__(self, path: Path) -> None:
        self.path, self.config = path, read_config(path)
        self.checkpoint = open_checkpoint(path, self.config)

    def plans(self, partition: tuple[int, ...], tp: int, dtype: str = "float32") -> list[WeightPlan]:
        return plan_all_ranks(self.config, tp, partition, dtype, self.checkpoint)

    def load(self, plan: WeightPlan, partition: tuple[int, ...]) -> Stage:
        dtype = torch_dtype(plan.parameters[0].dtype)
        stage = Stage(self.config, plan.stage, partition, plan.shard, dtype, CpuOperations())
        for parameter in stage.parameters():
            parameter.data.fill_(torch.nan)
        load_weights(stage, plan, self.checkpoint)
        return stage


@pytest.fixture(scope="module")
def reference() -> Any:
    config = random_text_config(num_hidden_layers=5, vocab_size=389, linear_num_key_heads=2, num_key_value_heads=2)
    return round_to_bfloat16(make_reference(config, seed=9))


@pytest.fixture(scope="module")
def folder(reference: Any, tmp_path_factory: pytest.TempPathFactory) -> Folder:
    path = tmp_path_factory.mktemp("loader")
    return Folder(write_checkpoint(reference, path, experts="mixed", shards=6, with_mtp=True, with_vision=True))


@pytest.mark.parametrize(("partition", "tp"), LAYOUTS)
def test_every_rank_holds_its_slices_of_the_reference(
    folder: Folder, reference: Any, partition: tuple[int, ...], tp: int
) -> None:
    for plan in folder.plans(partition, tp):
        stage = folder.load(plan, partition)
        found = dict(stage.named_parameters())
        expected = expected_parameters(reference, plan.stage, plan.shard)
        assert found.keys() == expected.keys()
        for name, tensor in found.items():
            assert torch.equal(tensor, expected[name]), f"{plan.stage} {plan.shard} {name}"


VARIANTS = [
    {"experts": "per_expert"},
    {"experts": "mixed", "shards": 3},
    {"naming": "text"},
    {"naming": "text", "experts": "mixed", "shards": 7, "f32_a_log": False},
    {"f32_a_log": False},
    {"with_mtp": True, "with_vision": True, "shards": 2},
    {"naming": "text", "experts": "per_expert", "with_mtp": True},
    {"dtype": "float32"},
]


@pytest.mark.parametrize("variant", VARIANTS, ids=str)
@pytest.mark.parametrize("tp", [1, 2])
def test_every_form_of_a_checkpoint_gives_the_same_parameters(
    folder: Folder, reference: Any, tmp_path: Path, variant: dict[str, Any], tp: int
) -> None:
    """A_log and the gated norm, stored in bfloat16, are rounded; all else is the same bit for bit."""
    other = Folder(write_checkpoint(reference, tmp_path, **variant))
    for plan, other_plan in zip(folder.plans((2, 3), tp), other.plans((2, 3), tp), strict=True):
        expected, found = (dict(f.load(p, (2, 3)).named_parameters()) for f, p in ((folder, plan), (other, other_plan)))
        for name, tensor in expected.items():
            rounded = not variant.get("f32_a_log", True) and name.endswith(("A_log", "linear_attn.norm.weight"))
            assert torch.equal(found[name], tensor.bfloat16().float() if rounded else tensor), name


@pytest.mark.parametrize("computing", ["bfloat16", "float32"])
def test_the_computing_dtype_is_the_plan_s_but_for_the_decay(folder: Folder, computing: str) -> None:
    plan = folder.plans((5,), 1, computing)[0]
    stage = folder.load(plan, (5,))
    for name, parameter in stage.named_parameters():
        stays = name.endswith(("A_log", "dt_bias", "linear_attn.norm.weight"))
        assert parameter.dtype == (torch.float32 if stays else torch_dtype(computing)), name


# ------------------------------------------------------------------ bytes and files


def bytes_of(folder: Folder, piece: Piece, gap_bytes: int) -> int:
    """Bytes read for a piece that fits one block: its own, and what lies between its runs if that is a short gap."""
    entry = folder.checkpoint.tensors[piece.tensor]
    lengths = [stop - start for start, stop in piece.source]
    own = prod(lengths) * entry.item_bytes
    if len(lengths) < 2 or lengths[-1] == entry.shape[-1]:
        return own
    gap = (entry.shape[-1] - lengths[-1]) * entry.item_bytes
    return own + (prod(lengths[:-1]) - 1) * gap * (gap < gap_bytes)


def check_bytes_read(folder: Folder, partition: tuple[int, ...], tp: int, gap_bytes: int = loader.GAP_BYTES) -> int:
    """Of every rank; returns the bytes of all."""
    total = 0
    for plan in folder.plans(partition, tp):
        stage = Stage(folder.config, plan.stage, partition, plan.shard, torch.float32, CpuOperations())
        num_bytes, bytes_written = bytes_read_by(partial(load_weights, stage, plan, folder.checkpoint))
        pieces = [piece for parameter in plan.parameters for piece in parameter.pieces]
        assert num_bytes == sum(bytes_of(folder, piece, gap_bytes) for piece in pieces)
        assert bytes_written == plan.num_bytes
        total += num_bytes
    return total


@pytest.mark.parametrize(("partition", "tp"), LAYOUTS)
def test_a_rank_reads_its_bytes_and_short_gaps_of_column_slices(
    folder: Folder, partition: tuple[int, ...], tp: int
) -> None:
    """One tensor rank has no column slices: then it is every byte of the text model once."""
    total = check_bytes_read(folder, partition, tp)
    if tp == 1:
        assert total == sum(entry.num_bytes for entry in folder.checkpoint.tensors.values())


@pytest.mark.parametrize("block_bytes", [64, 2**23])
def test_a_rank_reads_nothing_but_its_bytes_where_the_gaps_are_long(
    folder: Folder, monkeypatch: pytest.MonkeyPatch, block_bytes: int
) -> None:
    monkeypatch.setattr(loader, "GAP_BYTES", 1)
    monkeypatch.setattr(loader, "BLOCK_BYTES", block_bytes)
    check_bytes_read(folder, (2, 3), 2, gap_bytes=1)


def test_long_rows_are_read_in_part_without_being_told_to(tmp_path: Path) -> None:
    """The rows of o_proj have 16 KiB, as in the largest model: half of one is left out."""
    shape = {"num_hidden_layers": 1, "layer_types": ["full_attention"], "head_dim": 2048}
    wide = Folder(write_checkpoint(round_to_bfloat16(make_reference(random_text_config(**shape))), tmp_path))
    o_proj = wide.checkpoint.tensors["layers.0.self_attn.o_proj.weight"]
    assert o_proj.shape == (64, 8192)
    for plan in wide.plans((1,), 2):
        (piece,) = next(p for p in plan.parameters if p.name.endswith("o_proj.weight")).pieces
        assert bytes_of(wide, piece, loader.GAP_BYTES) == o_proj.num_bytes // 2
    check_bytes_read(wide, (1,), 2)


def test_opening_reads_the_header_and_nothing_behind_it(reference: Any, tmp_path: Path) -> None:
    write_checkpoint(reference, tmp_path)
    config: ModelConfig = read_config(tmp_path)
    header_bytes = (tmp_path / "model.safetensors").stat().st_size - len(read_raw(tmp_path / "model.safetensors")[1])
    assert bytes_read_by(partial(open_checkpoint, tmp_path, config))[0] == header_bytes


def test_files_without_a_tensor_for_this_rank_stay_closed(folder: Folder, monkeypatch: pytest.MonkeyPatch) -> None:
    really_open, opened = loader.os.open, set()

    def recording_open(path: Path, flags: int) -> int:
        opened.add(Path(path))
        return really_open(path, flags)

    monkeypatch.setattr(loader.os, "open", recording_open)
    every = set(folder.checkpoint.header_bytes)
    for plan in folder.plans((1, 1, 1, 1, 1), 1):
        opened.clear()
        folder.load(plan, (1, 1, 1, 1, 1))
        needed = {folder.checkpoint.tensors[p.tensor].file for parameter in plan.parameters for p in parameter.pieces}
        assert opened == needed
        assert needed < every


@pytest.mark.parametrize("gap_bytes", [1, 6144])
@pytest.mark.parametrize("block_bytes", [16, 100, 4096])
def test_small_blocks_fill_the_same(
    folder: Folder, monkeypatch: pytest.MonkeyPatch, block_bytes: int, gap_bytes: int
) -> None:
    plan = folder.plans((2, 3), 2)[3]
    expected = dict(folder.load(plan, (2, 3)).named_parameters())
    monkeypatch.setattr(loader, "BLOCK_BYTES", block_bytes)
    monkeypatch.setattr(loader, "GAP_BYTES", gap_bytes)
    stage = folder.load(plan, (2, 3))
    assert all(torch.equal(parameter, expected[name]) for name, parameter in stage.named_parameters())


def test_progress_adds_up_to_the_planned_bytes(folder: Folder) -> None:
    plan = folder.plans((2, 3), 2)[2]
    stage, seen = Stage(folder.config, plan.stage, (2, 3), plan.shard, torch.float32, CpuOperations()), []
    load_weights(stage, plan, folder.checkpoint, seen.append)
    assert sum(seen) == plan.num_bytes


def test_a_file_cut_while_loading_is_named(reference: Any, tmp_path: Path) -> None:
    cut = Folder(write_checkpoint(reference, tmp_path))
    plan = cut.plans((5,), 1)[0]
    file = tmp_path / "model.safetensors"
    with file.open("r+b") as stream:
        stream.truncate(file.stat().st_size - 1000)
    with pytest.raises(CheckpointError, match=r"model\.safetensors: tensor '.*' ends early"):
        cut.load(plan, (5,))


def test_a_file_that_cannot_be_read_is_named_with_the_tensor(reference: Any, tmp_path: Path) -> None:
    """Any error of a read, as a broken disk gives it; here it is opened and turns out to be a folder."""
    folder = Folder(write_checkpoint(reference, tmp_path))
    plan = folder.plans((5,), 1)[0]
    file = tmp_path / "model.safetensors"
    file.unlink()
    file.mkdir()
    with pytest.raises(
        CheckpointError, match=r"model\.safetensors: tensor '.*' cannot be read at byte \d+: Is a direct"
    ):
        folder.load(plan, (5,))
