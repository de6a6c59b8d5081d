"""The prefill kernels with the tiles and widths of Qwen3.5-35B-A3B, whole and as tensor ranks hold them, against torch
in float32 on the same GPU."""

from collections.abc import Iterator

import pytest
import torch
import torch.nn.functional as F

pytest.importorskip("triton")
if not torch.cuda.is_available():
    pytest.skip("needs 1 GPU, this machine has 0", allow_module_level=True)

from splitrank.models.layer_shapes import STATE_PERIOD, pending_shape
from splitrank.models.ops.gpu.attention_chunk import attention_chunk, prepare_attention
from splitrank.models.ops.gpu.conv_chunk import conv_chunk
from splitrank.models.ops.gpu.delta_chunk import delta_chunk, solve_blocks
from splitrank.models.ops.gpu.dense import project, shared_activation
from splitrank.models.ops.gpu.packing import interleave_gate_up
from splitrank.models.ops.gpu.sequences import Sequences, place
from splitrank.models.ops.gpu.sort_pairs import sort_pairs
from splitrank.models.ops.gpu.sorted_experts import sorted_down, sorted_up
from splitrank.models.ops.gpu.tiles import Tile, load_tiles
from splitrank.models.rounding import pages_needed
from tests.models.ops.gpu.comparison import assert_near, nan, normal

pytestmark = pytest.mark.gpu
BF16 = torch.bfloat16
LENGTHS, STARTS = [1, 63, 64, 65, 200, 700, 2048], [64, 0, 128, 0, 1024, 64, 0]
SLOTS = [7, 2, 3, 9, 0, 5, 8]
TP = pytest.mark.parametrize("tp", [1, 2, 4])


@pytest.fixture
def device() -> torch.device:
    torch.manual_seed(0)
    return torch.device("cuda", torch.cuda.current_device())


def tile(name: str, rows: int = 8192) -> Tile:
    return load_tiles(torch.cuda.get_device_name()).tile(name, rows)


def tables(page: int) -> list[list[int]]:
    counts = [pages_needed(length + start, page) for length, start in zip(LENGTHS, STARTS, strict=True)]
    order = (torch.randperm(sum(counts)) + 1).tolist()
    return [order[sum(counts[:n]) : sum(counts[: n + 1])] for n in range(len(counts))]


def runs(sequences: Sequences) -> Iterator[tuple[slice, int, int]]:
    """Rows, start and slot of each sequence."""
    firsts = sequences.cu_seqlens.tolist()
    for n, (start, slot) in enumerate(zip(STARTS, SLOTS, strict=True)):
        yield slice(firsts[n], firsts[n + 1]), start, slot


@TP
def test_conv_chunk(device: torch.device, tp: int) -> None:
    key_heads, heads, dim = 16 // tp, 32 // tp, 128
    sequences = place(LENGTHS, STARTS, SLOTS, [[0]] * len(SLOTS), device)
    channels = (2 * key_heads + heads) * dim
    projected = normal(device, BF16, sequences.num_rows, channels + heads * (dim + 2))
    taps, ring = normal(device, torch.float32, 4, channels), normal(device, BF16, 11, 4, channels)
    rate, bias = -torch.rand(heads, device=device), normal(device, torch.float32, heads)
    for _, start, slot in runs(sequences):
        if start == 0:
            ring[slot] = torch.nan
    before = ring.clone()
    found = conv_chunk(projected, taps, rate, bias, ring, sequences, key_heads, tile("conv_chunk"))
    for rows, start, slot in runs(sequences):
        old = before[slot, 1:] if start else torch.zeros_like(before[slot, 1:])  # a start is a multiple of 4
        inputs = torch.cat((old, projected[rows, :channels]))
        mixed = F.silu(F.conv1d(inputs.float().t()[None], taps.t()[:, None], groups=channels))[0].t()
        q, k, v = mixed.split([key_heads * dim, key_heads * dim, heads * dim], 1)
        assert_near(found.q[rows], F.normalize(q.reshape(-1, key_heads, dim), dim=-1))
        assert_near(found.k[rows], F.normalize(k.reshape(-1, key_heads, dim), dim=-1))
        assert_near(found.v[rows], v.reshape(-1, heads, dim))
        stop = start + len(inputs) - 3
        places = [position % 4 for position in range(max(start, stop - 4), stop)]
        assert torch.equal(ring[slot, places], inputs[-len(places) :])
    b, a = projected[:, -2 * heads : -heads].float(), projected[:, -heads:].float()
    assert_near(found.beta, b.sigmoid(), 1e-6)
    assert_near(found.log_decay, rate * F.softplus(a + bias), 1e-6)


@TP
def test_delta_chunk(device: torch.device, tp: int) -> None:
    key_heads, heads, dim = 16 // tp, 32 // tp, 128
    sequences = place(LENGTHS, STARTS, SLOTS, [[0]] * len(SLOTS), device)
    total = sequences.num_rows
    q, k = (F.normalize(torch.randn(total, key_heads, dim, device=device), dim=-1).to(BF16) for _ in range(2))
    v, states = normal(device, BF16, total, heads, dim), normal(device, torch.float32, 11, heads, dim, dim, scale=0.1)
    log_decay, beta = -0.2 * torch.rand(total, heads, device=device), torch.rand(total, heads, device=device)
    for _, start, slot in runs(sequences):
        if start == 0:
            states[slot] = torch.nan
    states[1] = torch.nan
    before = states.clone()
    solved = solve_blocks(q, k, log_decay, beta, sequences, tile("solve_blocks"))
    pending = nan(device, torch.float32, 11, *pending_shape(key_heads, dim, heads, dim))
    found = delta_chunk(q, k, v, solved, states, pending, sequences, tile("delta_chunk"))
    assert states[1].isnan().all()
    assert pending[1].isnan().all()
    for rows, start, slot in runs(sequences):
        held = (start + rows.stop - rows.start) % STATE_PERIOD
        assert not pending[slot, :held].any()
        assert pending[slot, held:].isnan().all()
    for rows, start, slot in runs(sequences):
        state = before[slot] if start else torch.zeros_like(before[slot])
        expected = []
        wide_q, wide_k = (x[rows].float().repeat_interleave(2, 1) for x in (q, k))
        for query, key, value, gate, b in zip(
            wide_q * dim**-0.5, wide_k, v[rows].float(), log_decay[rows].exp(), beta[rows], strict=True
        ):
            state = state * gate[:, None, None]
            new = b[:, None] * (value - torch.einsum("hkv,hk->hv", state, key))
            state = state + key[:, :, None] * new[:, None]
            expected.append(torch.einsum("hkv,hk->hv", state, query))
        assert_near(found[rows], torch.stack(expected))
        assert_near(states[slot], state, 5e-3)


@pytest.mark.parametrize(("heads", "kv_heads"), [(16, 2), (8, 1), (4, 1)])
@pytest.mark.parametrize("page", [64, 16])
def test_attention_chunk(device: torch.device, heads: int, kv_heads: int, page: int) -> None:
    dim, half = 256, 32
    pages = tables(page)
    sequences = place(LENGTHS, STARTS, SLOTS, pages, device)
    total = sequences.num_rows
    keys, values = (nan(device, BF16, sum(map(len, pages)) + 1, page, kv_heads, dim) for _ in range(2))
    flat = [cache.view(-1, kv_heads, dim) for cache in (keys, values)]

    def places(n: int, start: int, stop: int) -> torch.Tensor:
        at = [pages[n][t // page] * page + t % page for t in range(start, stop)]
        return torch.tensor(at, device=device, dtype=torch.int64)

    for n, start in enumerate(STARTS):
        for cache in flat:
            cache[places(n, 0, start)] = normal(device, BF16, start, kv_heads, dim)
    positions = torch.cat([torch.arange(s, s + n, device=device) for n, s in zip(LENGTHS, STARTS, strict=True)])
    angles = positions[:, None] * 1e7 ** (-torch.arange(half, device=device) / half)
    cos, sin = angles.cos(), angles.sin()
    projected = normal(device, BF16, total, 2 * (heads + kv_heads) * dim)
    weights = normal(device, BF16, 2, dim, scale=0.1)

    def turned(x: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
        x = F.rms_norm(x.float(), (dim,), eps=1e-6) * (1 + weight.float())
        a, b, c, s = x[..., :half], x[..., half : 2 * half], cos[:, None], sin[:, None]
        return torch.cat((a * c - b * s, b * c + a * s, x[..., 2 * half :]), -1)

    q_gate, k, v = projected.clone().split([2 * heads * dim, kv_heads * dim, kv_heads * dim], 1)
    q, gate = q_gate.view(-1, heads, 2 * dim).chunk(2, -1)
    q, k = turned(q, weights[0]), turned(k.reshape(-1, kv_heads, dim), weights[1])
    prepare_attention(projected, *weights, 1e-6, cos, sin, keys, values, sequences, tile("prepare_attention"))
    out = attention_chunk(projected, keys, values, sequences, tile("attention_chunk"))
    for n, (rows, start, _) in enumerate(runs(sequences)):
        stop = start + LENGTHS[n]
        new, context = places(n, start, stop), places(n, 0, stop)
        assert_near(flat[0][new], k[rows])
        assert torch.equal(flat[1][new], v[rows].reshape(-1, kv_heads, dim))
        all_k, all_v = (
            cache[context].float().repeat_interleave(heads // kv_heads, 1).transpose(0, 1) for cache in flat
        )
        visible = torch.arange(stop, device=device) <= torch.arange(start, stop, device=device)[:, None]
        expected = F.scaled_dot_product_attention(q[rows].transpose(0, 1), all_k, all_v, attn_mask=visible)
        assert_near(out[rows].view(-1, heads, dim), expected.transpose(0, 1) * gate[rows].float().sigmoid())


@TP
@pytest.mark.parametrize("rows", [1, 200, 8192])
def test_experts(device: torch.device, rows: int, tp: int) -> None:
    hidden, inner, num_experts, top_k = 2048, 512 // tp, 256, 8
    x, side = normal(device, BF16, rows, hidden), normal(device, BF16, rows, 257 + 2 * inner + 15)
    gate_up = normal(device, BF16, num_experts, 2 * inner, hidden, scale=hidden**-0.5)
    down = normal(device, BF16, num_experts, hidden, inner, scale=inner**-0.5)
    shared_down = normal(device, BF16, hidden, inner, scale=inner**-0.5)
    pairs = sort_pairs(side[:, :num_experts], top_k, tile("sort_pairs"))
    logits = side[:, :num_experts].float()
    best = logits.topk(top_k, 1)
    assert torch.equal(logits.gather(1, pairs.experts.long()), best.values)
    assert_near(pairs.weights, best.values.softmax(1), 1e-6)
    assert torch.equal(pairs.order.long(), pairs.experts.flatten().sort(stable=True).indices)
    act = sorted_up(x, interleave_gate_up(gate_up), pairs, tile("sorted_up"))
    out = nan(device, BF16, rows, top_k + 1, hidden)
    sorted_down(act, down, pairs, out, tile("sorted_down"))
    wide = side[:, 257 : 257 + 2 * inner]
    shared = shared_activation(wide, side[:, num_experts], tile("shared_activation"))
    project(shared, shared_down, out[:, top_k])
    expected = nan(device, torch.float32, rows, top_k + 1, hidden)
    for expert in pairs.experts.unique().tolist():
        row, place_of = (pairs.experts == expert).nonzero(as_tuple=True)
        gate, up = (x[row].float() @ gate_up[expert].float().t()).chunk(2, 1)
        y = (F.silu(gate) * up) @ down[expert].float().t()
        expected[row, place_of] = y * pairs.weights[row, place_of, None]
    gate, up = wide.float().chunk(2, 1)
    y = F.silu(gate) * up * side[:, num_experts, None].float().sigmoid()
    expected[:, top_k] = y @ shared_down.float().t()
    assert_near(out, expected)
    # A pair's bits, alone and in the crowd.
    few = min(rows, 40)
    pairs_few = sort_pairs(side[:few, :num_experts], top_k, tile("sort_pairs"))
    out_few = nan(device, BF16, few, top_k + 1, hidden)
    act = sorted_up(x[:few], interleave_gate_up(gate_up), pairs_few, tile("sorted_up"))
    sorted_down(act, down, pairs_few, out_few, tile("sorted_down"))
    assert torch.equal(out_few[:, :top_k], out[:few, :top_k])


def test_a_sequence_has_the_same_bits_in_chunks_and_among_others(device: torch.device) -> None:
    key_heads, heads, dim, length = 16, 32, 128, 1000
    channels = (2 * key_heads + heads) * dim
    projected = normal(device, BF16, length, channels + heads * (dim + 2))
    taps = normal(device, torch.float32, 4, channels)
    rate, bias = -torch.rand(heads, device=device), normal(device, torch.float32, heads)
    ring, delta = nan(device, BF16, 4, 4, channels), nan(device, torch.float32, 4, heads, dim, dim)
    pending = nan(device, torch.float32, 4, *pending_shape(key_heads, dim, heads, dim))

    def mixed(rows: torch.Tensor, sequences: Sequences) -> torch.Tensor:
        q, k, v, log_decay, beta = conv_chunk(rows, taps, rate, bias, ring, sequences, key_heads, tile("conv_chunk"))
        solved = solve_blocks(q, k, log_decay, beta, sequences, tile("solve_blocks"))
        return delta_chunk(q, k, v, solved, delta, pending, sequences, tile("delta_chunk"))

    whole = mixed(projected, place([length], [0], [1], [[0]], device))
    for first, stop in ((0, 512), (512, 704), (704, 1000)):
        part = mixed(projected[first:stop], place([stop - first], [first], [2], [[0]], device))
        assert torch.equal(part, whole[first:stop])
    assert torch.equal(delta[2], delta[1])
    crowd = torch.cat(
        (nan(device, BF16, 70, projected.shape[1]), projected, normal(device, BF16, 9, projected.shape[1]))
    )
    found = mixed(crowd, place([70, length, 9], [0, 0, 0], [0, 2, 3], [[0]] * 3, device))
    assert torch.equal(found[70 : 70 + length], whole)
    assert torch.equal(delta[2], delta[1])
