"""transformers' Qwen3.5-MoE, with three forward passes replaced while it trains.

The same function of the same parameters, said in operations that a GPU does fast at this size: the delta rule by
matrix products (delta_rule.py), the short convolution by four shifted products, all experts of all tokens in two
products with the unchosen ones weighted zero (16 small experts: four times the arithmetic, none of the gathering).
Generation with a cache runs transformers' own code.
"""

import types
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import delta_rule
import torch
import torch.nn.functional as F
from delta_rule import chunked_delta_rule
from torch import Tensor, nn
from transformers import Qwen3_5MoeForCausalLM, Qwen3_5MoeTextConfig
from transformers.models.qwen3_5_moe import modeling_qwen3_5_moe


def build_model(text_config: dict[str, Any], seed: int, *, fast: bool = True) -> Any:
    """Random float32 weights, the same for the same seed."""
    torch.manual_seed(seed)
    model: Any = Qwen3_5MoeForCausalLM(Qwen3_5MoeTextConfig(**{**text_config, "dtype": "float32"}))
    model.float()
    with torch.no_grad():
        for name, weight in model.named_parameters():
            if name.endswith("mlp.gate.weight"):
                weight.normal_(0.0, text_config["initializer_range"])
    if fast:
        for layer in model.model.layers:
            if hasattr(layer, "linear_attn"):
                _replace_mixer(layer.linear_attn)
            layer.mlp.experts.forward = types.MethodType(_dense_experts, layer.mlp.experts)
    return model


def num_parameters(model: nn.Module) -> int:
    return sum(weight.numel() for weight in model.parameters())


def _replace_mixer(mixer: Any) -> None:
    original = mixer.forward

    def forward(hidden_states: Tensor, **options: Any) -> Tensor:
        if mixer.training:
            return _train_mixer(mixer, hidden_states)
        result: Tensor = original(hidden_states=hidden_states, **options)
        return result

    mixer.forward = forward


def _train_mixer(mixer: Any, x_BTD: Tensor) -> Tensor:
    """Rows are padded on the right, if at all, so no mask is needed."""
    batch, tokens, _ = x_BTD.shape
    qkv = _short_convolution(mixer.in_proj_qkv(x_BTD), mixer.conv1d.weight[:, 0])
    query, key, value = torch.split(qkv, [mixer.key_dim, mixer.key_dim, mixer.value_dim], dim=-1)
    log_decay = -mixer.A_log.float().exp() * F.softplus(mixer.in_proj_a(x_BTD).float() + mixer.dt_bias)
    beta = mixer.in_proj_b(x_BTD).sigmoid()
    with torch.autocast(x_BTD.device.type, enabled=False):
        outputs = chunked_delta_rule(
            query.reshape(batch, tokens, -1, mixer.head_k_dim),
            key.reshape(batch, tokens, -1, mixer.head_k_dim),
            value.reshape(batch, tokens, -1, mixer.head_v_dim),
            log_decay,
            beta,
        ).to(qkv.dtype)
    gate = mixer.in_proj_z(x_BTD).reshape(-1, mixer.head_v_dim)
    normed = mixer.norm(outputs.reshape(-1, mixer.head_v_dim), gate)
    mixed: Tensor = mixer.out_proj(normed.reshape(batch, tokens, -1))
    return mixed


def _short_convolution(x_BTC: Tensor, weight_CW: Tensor) -> Tensor:
    """Causal and per channel: output t sees inputs t-W+1 to t; then SiLU."""
    width = weight_CW.shape[1]
    weight = weight_CW.to(x_BTC.dtype)
    padded = F.pad(x_BTC, (0, 0, width - 1, 0))
    tokens = x_BTC.shape[1]
    total = padded[:, :tokens] * weight[:, 0]
    for offset in range(1, width):
        total = total + padded[:, offset : offset + tokens] * weight[:, offset]
    return F.silu(total)


def _dense_experts(self: Any, hidden_states: Tensor, top_k_index: Tensor, top_k_weights: Tensor) -> Tensor:
    experts, double_inner, hidden = self.gate_up_proj.shape
    both = F.linear(hidden_states, self.gate_up_proj.reshape(experts * double_inner, hidden))
    inner = _expert_inner(both, top_k_index, top_k_weights, experts)
    return F.linear(inner, self.down_proj.transpose(0, 1).reshape(hidden, -1))


def _expert_inner(both: Tensor, top_k_index: Tensor, top_k_weights: Tensor, experts: int) -> Tensor:
    """[tokens, experts * inner]: zero for the experts that a token did not choose."""
    weights = torch.zeros(both.shape[0], experts, dtype=top_k_weights.dtype, device=both.device)
    weights = weights.scatter(1, top_k_index, top_k_weights)
    gate, up = both.view(both.shape[0], experts, 2, -1).unbind(dim=2)
    return (F.silu(gate) * up * weights.unsqueeze(-1).to(gate.dtype)).flatten(1)


def compile_parts() -> None:
    """torch.compile for what lies between the large products, for every number of rows and tokens at once."""
    global _short_convolution, _expert_inner
    torch._dynamo.config.recompile_limit = 32  # one row, one chunk, bf16 or float32: each is a graph of its own
    _short_convolution = torch.compile(_short_convolution, dynamic=True)
    _expert_inner = torch.compile(_expert_inner, dynamic=True)
    for name in ("chunks", "strict_part", "within_chunks"):
        setattr(delta_rule, name, torch.compile(getattr(delta_rule, name), dynamic=True))
    for kind in (modeling_qwen3_5_moe.Qwen3_5MoeRMSNorm, modeling_qwen3_5_moe.Qwen3_5MoeRMSNormGated):
        kind.forward = torch.compile(kind.forward, dynamic=True)  # type: ignore[method-assign]


@contextmanager
def routed(model: Any) -> Iterator[list[tuple[Tensor, Tensor]]]:
    """Collects (router logits [tokens, experts], chosen experts [tokens, k]) of each layer in the forward passes."""
    collected: list[tuple[Tensor, Tensor]] = []

    def collect(module: nn.Module, inputs: Any, outputs: tuple[Tensor, Tensor, Tensor]) -> None:
        collected.append((outputs[0], outputs[2]))

    handles = [layer.mlp.gate.register_forward_hook(collect) for layer in model.model.layers]
    try:
        yield collected
    finally:
        for handle in handles:
            handle.remove()


def balance_loss(collected: list[tuple[Tensor, Tensor]], real_tokens: Tensor) -> Tensor:
    """Switch Transformer's: experts x share of choices x mean probability, 1 when even; the mean over the layers.
    ``real_tokens`` [tokens] is false for padding."""
    losses = []
    weight = real_tokens.float() / real_tokens.sum()
    for logits, chosen in collected:
        probabilities = weight @ logits.float().softmax(dim=-1)
        counts = torch.zeros_like(logits, dtype=torch.float32).scatter(1, chosen, 1.0 / chosen.shape[1])
        losses.append(logits.shape[1] * (weight @ counts * probabilities).sum())
    return torch.stack(losses).mean()


def training_loss(model: Any, token_ids: Tensor, weights: Tensor, balance: float) -> tuple[Tensor, Tensor]:
    """(weighted cross-entropy, balance loss), both means. ``weights[:, t]`` is that of predicting token t; -1 there
    marks padding."""
    real = weights >= 0
    with routed(model) as collected:
        hidden = model.model(input_ids=token_ids, use_cache=False).last_hidden_state
    wanted = weights[:, 1:] > 0
    logits = model.lm_head(hidden[:, :-1][wanted])
    losses = F.cross_entropy(logits.float(), token_ids[:, 1:][wanted], reduction="none")
    chosen_weights = weights[:, 1:][wanted]
    answer_loss = (losses * chosen_weights).sum() / chosen_weights.sum()
    return answer_loss, balance * balance_loss(collected, real.flatten())
