"""All experts of a layer, from the router's product on: one row, few rows, and many rows."""

import torch

from splitrank.models.layers.moe import SparseMoe
from splitrank.models.ops.gpu.dense import shared_activation
from splitrank.models.ops.gpu.experts import experts_down, experts_up
from splitrank.models.ops.gpu.experts_one import experts_down_one, experts_up_one
from splitrank.models.ops.gpu.projection import project
from splitrank.models.ops.gpu.routing import empty_routing, route
from splitrank.models.ops.gpu.sort_pairs import sort_pairs
from splitrank.models.ops.gpu.sorted_experts import sorted_down, sorted_up
from splitrank.models.ops.gpu.tiles import TileTable


def experts_of_few(
    logits: torch.Tensor,
    normed: torch.Tensor,
    layer: SparseMoe,
    num_live: torch.Tensor,
    parts: torch.Tensor,
    tiles: TileTable,
    shards: int = 1,
) -> None:
    """logits [T, N] of the packed router, normed [T, H] -> the parts of each row's sum, [T, 1 or k + 1, H]: 1 in the
    form ``fma``. With ``shards``, k + 1 of each run of inner columns, one run after the other.

    ``num_live`` [1] int32: rows from there on are padding, and their parts undefined.
    """
    rows, (gate_up, down) = normed.shape[0], layer.experts.stored
    shared_down, top_k = layer.shared_expert.down_proj.stored, layer.top_k
    shared_inner, block_t = shared_down.shape[1], tiles.tile("route", rows)["t"]
    routing = empty_routing(rows, gate_up.shape[0], top_k, block_t, normed.device)
    act = normed.new_empty(rows * (top_k + 1), max(down.shape[2], shared_inner))
    up, down_tile = tiles.tile("experts_up", rows), tiles.tile("experts_down", rows)
    if up.form == "fma":
        experts_up_one(logits, normed, gate_up, shared_inner, routing, act, up)
        experts_down_one(act, down, shared_down, routing, parts[:, 0], down_tile)
        return
    route(logits, num_live, gate_up.shape[0], routing, tiles.tile("route", rows))
    experts_up(logits, normed, gate_up, shared_inner, routing, act, up, block_t)
    experts_down(act, down, shared_down, routing, parts, down_tile, block_t, shards)


def experts_of_many(
    logits: torch.Tensor,
    normed: torch.Tensor,
    layer: SparseMoe,
    parts: torch.Tensor,
    tiles: TileTable,
    shards: int = 1,
) -> None:
    """The same for many rows, none of which is padding -> parts [T, k + 1, H], of each of ``shards``."""
    rows, (gate_up, down), top_k = normed.shape[0], layer.experts.stored, layer.top_k
    num_experts, shared_down = gate_up.shape[0], layer.shared_expert.down_proj.stored
    pairs = sort_pairs(logits[:, :num_experts], top_k, tiles.tile("sort_pairs", rows))
    act = sorted_up(normed, gate_up, pairs, tiles.tile("sorted_up", rows))
    sorted_down(act, down, pairs, parts, tiles.tile("sorted_down", rows), shards)
    behind = num_experts + 1
    shared_gate_up = logits[:, behind : behind + 2 * shared_down.shape[1]]
    shared = shared_activation(shared_gate_up, logits[:, num_experts], tiles.tile("shared_activation", rows))
    out = parts[:, top_k] if shards == 1 else parts[:, top_k :: top_k + 1]
    project(shared, shared_down, out, tiles.tile("prompt_proj", rows))
