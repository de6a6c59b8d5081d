"""The decode operations with torch in float64 on the GPU, many rows at once: at real widths, where one row, head and
expert at a time (``models/ops/reference.py``) would take hours."""

import torch
import torch.nn.functional as F

from scripts.decode_chain import Shape, State, Weights
from splitrank.models.layer_shapes import STATE_PERIOD


def rms(x: torch.Tensor, scale: torch.Tensor) -> torch.Tensor:
    x = x.double()
    return x * torch.rsqrt(x.square().mean(-1, keepdim=True) + 1e-6) * scale.double()


def product(x: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
    """In float32, without TF32: a float64 copy of a head would be 4 GB."""
    return x.float() @ weight.float().t()


def delta_step(s: Shape, w: Weights, projected: torch.Tensor, state: State, layer: int) -> tuple[torch.Tensor, ...]:
    """-> outputs [T, H, v] before the norm, the new states and rings of the rows, from the states with all updates."""
    rows, at = projected.shape[0], state.positions[: projected.shape[0]].long()
    index = state.slots[:rows].long()
    ring = state.rings[layer][index].double()
    old = whole_states(s, state, layer, index, at % STATE_PERIOD) * (at > 0)[:, None, None, None]
    new, gates = projected[:, : s.channels].double(), projected[:, -2 * s.value_heads :].double()
    every = torch.arange(rows, device=projected.device)
    mixed = new * w.taps[-1].double()
    for age in range(1, s.taps):
        past = ring[every, (at - age) % s.taps] * (at >= age)[:, None]
        mixed = mixed + past * w.taps[-1 - age].double()
    ring[every, at % s.taps] = new
    keys = s.key_heads * s.key_dim
    q, k, v = F.silu(mixed).split([keys, keys, s.value_heads * s.value_dim], -1)
    repeats = s.value_heads // s.key_heads
    q, k = (_unit(part.view(rows, s.key_heads, s.key_dim)).repeat_interleave(repeats, 1) for part in (q, k))
    v = v.view(rows, s.value_heads, s.value_dim)
    beta, a = torch.sigmoid(gates[:, : s.value_heads]), gates[:, s.value_heads :]
    decay = (w.decay_rate.double() * F.softplus(a + w.dt_bias.double())).exp()
    decayed = old * decay[..., None, None]
    update = beta[..., None] * (v - (k[..., None] * decayed).sum(2))
    fresh = decayed + k[..., None] * update[:, :, None]
    return (q[..., None] * fresh).sum(2) * s.key_dim**-0.5, fresh, ring


def whole_states(s: Shape, state: State, layer: int, slots: torch.Tensor, counts: torch.Tensor) -> torch.Tensor:
    """The states of ``slots`` with the first ``counts`` of their pending updates."""
    found, pending = state.states[layer][slots].double(), state.pendings[layer][slots].double()
    sizes = [s.key_heads * s.key_dim, s.value_heads * s.value_dim, s.value_heads]
    keys, updates, decays = pending.split(sizes, -1)
    keys = keys.unflatten(-1, (-1, s.key_dim)).repeat_interleave(s.value_heads // s.key_heads, 2)
    updates = updates.unflatten(-1, (-1, s.value_dim))
    last = decays.gather(1, (counts - 1).clamp(min=0)[:, None, None].expand(-1, 1, s.value_heads))
    found = torch.where((counts > 0)[:, None, None, None], found * last[:, 0, :, None, None].exp(), found)
    for place in range(STATE_PERIOD - 1):
        share = (last[:, 0] - decays[:, place]).exp()
        new = share[..., None, None] * keys[:, place, :, :, None] * updates[:, place, :, None]
        found = torch.where((counts > place)[:, None, None, None], found + new, found)
    return found


def _unit(x: torch.Tensor) -> torch.Tensor:
    return x * torch.rsqrt(x.square().sum(-1, keepdim=True) + 1e-6)


def attention(
    s: Shape, w: Weights, qkv: torch.Tensor, rotations: torch.Tensor, state: State, layer: int
) -> torch.Tensor:
    """-> outputs [T, Hq, d] after the gate; pages are only read."""
    q_width, kv_width = 2 * s.heads * s.head_dim, s.kv_heads * s.head_dim
    q_gate, k, v = qkv.double().split([q_width, kv_width, kv_width], -1)
    q, gate = q_gate.view(-1, s.heads, 2 * s.head_dim).chunk(2, -1)
    q = _rotated(rms(q, 1 + w.q_norm.double()), rotations)
    k = _rotated(rms(k.view(-1, s.kv_heads, s.head_dim), 1 + w.k_norm.double()), rotations)
    v = v.view(-1, s.kv_heads, s.head_dim)
    out = []
    for row, context in enumerate(state.positions[: qkv.shape[0]].tolist()):
        pages = state.tables[row].long()
        keys, values = (kept[layer][pages].flatten(0, 1)[:context].double() for kept in (state.keys, state.values))
        keys, values = torch.cat((keys, k[row][None])), torch.cat((values, v[row][None]))
        groups = s.heads // s.kv_heads
        keys, values = (t.transpose(0, 1).repeat_interleave(groups, 0) for t in (keys, values))  # [Hq, L, d]
        weights = torch.softmax((keys @ q[row][..., None])[..., 0] * s.head_dim**-0.5, -1)
        out.append((weights[:, None] @ values)[:, 0] * torch.sigmoid(gate[row]))
    return torch.stack(out)


def _rotated(x: torch.Tensor, rotations: torch.Tensor) -> torch.Tensor:
    cos, sin = rotations.double()[:, None].chunk(2, -1)
    half = cos.shape[-1]
    first, second = x[..., :half], x[..., half : 2 * half]
    return torch.cat((first * cos - second * sin, second * cos + first * sin, x[..., 2 * half :]), -1)


def experts(s: Shape, logits: torch.Tensor, x: torch.Tensor, gate_up: torch.Tensor, down: torch.Tensor,
            shared_down: torch.Tensor) -> torch.Tensor:  # fmt: skip
    """The mixture of experts in float32, expert by expert; gate_up interleaved. -> [T, H]."""
    scores, chosen = torch.softmax(logits[:, : s.experts].float(), -1).topk(s.top_k)
    shares, x = scores / scores.sum(-1, keepdim=True), x.float()
    gate, up = logits[:, s.experts + 1 : s.experts + 1 + 2 * s.shared].float().chunk(2, -1)
    inner = F.silu(gate) * up * torch.sigmoid(logits[:, s.experts, None].float())
    out = product(inner, shared_down)
    for expert in chosen.unique().tolist():
        row, place = (chosen == expert).nonzero(as_tuple=True)
        gate, up = product(x[row], gate_up[expert]).unflatten(-1, (-1, 2)).unbind(-1)
        out[row] += shares[row, place, None] * product(F.silu(gate) * up, down[expert])
    return out
