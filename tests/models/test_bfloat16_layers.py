"""Each layer in bfloat16 with the norm before it, on equal inputs, within the error that bfloat16 explains.

A value rounded to bfloat16 (8 significant bits) moves by at most 2^-8 of itself. Roundings of different tensors are
independent, and a random projection neither amplifies nor damps them, so n roundings on the way from input to output
give a relative error (Euclidean, over the whole output) of at most about sqrt(n) * 2^-8. The mean square of one
rounding is a third of its largest, which leaves a factor of 1.7 for what norms and softmax amplify. The truth is
transformers' layer in float32 with the same (bfloat16-valued) weights and inputs; transformers' own bfloat16 layer has
to lie within the same bound, or the bound would be wrong; and the two bfloat16 layers within sqrt(2) of it.

End to end there is no such bound: with random weights a rounding flips an expert.

On a CPU with small layers; on a GPU with four layers of Qwen3.5-35B-A3B's widths.
"""

import copy
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import nn
from transformers import Qwen3_5MoeForCausalLM, Qwen3_5MoeTextConfig

from splitrank.comm.collectives import SingleRank
from splitrank.models.hidden_states import HiddenStates
from splitrank.models.ops.cpu.norm import rms_norm
from tests.support.checkpoints import make_reference, random_text_config, round_to_bfloat16, write_checkpoint
from tests.support.large_shapes import LARGE_SHAPES
from tests.support.stage_runner import StageRunner, random_tokens, relative_error

pytestmark = pytest.mark.timeout(600)  # of which a GPU's is the making of 3.2 billion weights

ROUNDING = 2.0**-8
# Of 35B-A3B's 256 experts the eighth and ninth are near each other: of its tokens fewer are beyond doubt.
LENGTHS = {"cpu": 64, "cuda": 512}
BEYOND_DOUBT = 33
REAL = LARGE_SHAPES["35B"] | {"num_hidden_layers": 4, "vocab_size": 4096}


class Models:
    """The same weights three times: ours in bfloat16, transformers in float32 and in bfloat16."""

    def __init__(self, folder: Path, device: str) -> None:
        config = random_text_config() if device == "cpu" else Qwen3_5MoeTextConfig(attn_implementation="eager", **REAL)
        self.length, self.device = LENGTHS[device], torch.device(device)
        self.exact = round_to_bfloat16(make_reference(config, seed=11))
        write_checkpoint(self.exact, folder / "model", dtype="bfloat16")
        self.runner = StageRunner(
            folder / "model", folder, dtype="bfloat16", device=device, devices=(0,), max_prefill_tokens=self.length,
            vocab_size=config.vocab_size,
        )  # fmt: skip
        self.exact = self.exact.to(self.device)
        self.rounded: Qwen3_5MoeForCausalLM = copy.deepcopy(self.exact).bfloat16()

    def batch(self) -> Any:
        worker, share = self.runner.worker, self.runner.start(self.length).take([0] * self.length)
        return worker.steps.make_batch([], [share.enter(worker.table)], ()).batch

    def batch_of(self, rows: int) -> Any:
        """All that the experts ask of a batch."""
        num_live = torch.tensor([rows], dtype=torch.int32, device=self.device)
        return SimpleNamespace(num_tokens=rows, num_live=num_live)

    def joined(self, states: HiddenStates) -> torch.Tensor:
        return self.runner.worker.ops.joined(states).hidden


@pytest.fixture(scope="module", params=["cpu", pytest.param("cuda", marks=pytest.mark.gpu)])
def models(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Models:
    if request.param == "cuda" and not torch.cuda.is_available():
        pytest.skip("needs 1 GPU, this machine has 0")
    return Models(tmp_path_factory.mktemp("bf16"), request.param)


@pytest.fixture
def hidden(models: Models) -> torch.Tensor:
    """Inputs [tokens, hidden], exact in bfloat16."""
    shape = (models.length, models.exact.config.hidden_size)
    return torch.randn(shape, generator=torch.Generator().manual_seed(2)).bfloat16().to(models.device)


def without_residual(hidden: torch.Tensor) -> HiddenStates:
    return HiddenStates(hidden, torch.zeros_like(hidden))


def assert_explained(
    ours: torch.Tensor, theirs: nn.Module, rounded: nn.Module, call: Callable[..., torch.Tensor], num_roundings: int
) -> None:
    """``call(module, dtype)`` runs transformers' module in a dtype."""
    with torch.no_grad():
        exact, own = call(theirs, torch.float32), call(rounded, torch.bfloat16)
    bound = num_roundings**0.5 * ROUNDING
    assert ours.dtype == torch.bfloat16
    assert relative_error(own, exact) <= bound
    assert relative_error(ours, exact) <= bound
    assert relative_error(ours, own) <= 2**0.5 * bound


@torch.inference_mode()
def test_norm(models: Models, hidden: torch.Tensor) -> None:
    """Float32 inside: the output is rounded once."""
    if models.device.type != "cpu":
        pytest.skip("a GPU's norm has no verb of its own: it stands before each projection, and so in the other tests")
    norm = models.runner.worker.model.layers[0].input_layernorm
    ours = rms_norm(hidden, norm.scale, norm.eps)
    pair = (models.exact.model.layers[0].input_layernorm, models.rounded.model.layers[0].input_layernorm)
    assert_explained(ours, *pair, lambda norm, dtype: norm(hidden.to(dtype)), num_roundings=1)


@torch.inference_mode()
def test_attention(models: Models, hidden: torch.Tensor) -> None:
    """Eight roundings of q and eight of k reach the output through the scores, and a score's error moves its
    probability by as much: input norm, projection, norm, cosine, sine, two products, sum. Then v with its input norm,
    the probabilities, the mean, the gate's projection and sigmoid, the product, the output: 2 * 8 + 8 = 24."""
    worker, batch = models.runner.worker, models.batch()
    cos_sin = worker.ops.cos_sin(batch, worker.model.rotary, torch.bfloat16)
    layer = worker.model.layers[3]
    states = layer.self_attn(
        without_residual(hidden), layer.input_layernorm, batch, worker.cache.layers[3], cos_sin, worker.ops
    )
    assert torch.equal(states.residual, hidden)

    def call(layer: nn.Module, dtype: torch.dtype) -> torch.Tensor:
        x = layer.input_layernorm(hidden.to(dtype))[None]
        positions = torch.arange(models.length, device=models.device).expand(3, 1, -1)  # of time, height and width
        embeddings = models.exact.model.rotary_emb(x, positions)
        square = (models.length, models.length)
        mask = torch.full(square, -torch.inf, dtype=dtype, device=models.device).triu(1)[None, None]
        output: torch.Tensor = layer.self_attn(x, embeddings, mask)[0][0]
        return output

    pair = (models.exact.model.layers[3], models.rounded.model.layers[3])
    assert_explained(models.joined(states), *pair, call, num_roundings=24)


@torch.inference_mode()
def test_linear_attention(models: Models, hidden: torch.Tensor) -> None:
    """The input norm (1); q, k and v: projection, convolution, silu (3 each); beta: projection, sigmoid (2); decay:
    projection (1), which the exponent of a sum over the tokens since amplifies by their number while they last (about
    4); the delta rule's output, the gate's projection, the gated norm, the output (4): 1 + 3 * 3 + 2 + 4 + 4 = 20."""
    worker, batch = models.runner.worker, models.batch()
    layer = worker.model.layers[0]
    states = layer.linear_attn(
        without_residual(hidden), layer.input_layernorm, batch, worker.cache.layers[0], worker.ops
    )
    pair = (models.exact.model.layers[0], models.rounded.model.layers[0])
    exact, rounded = (layer.linear_attn for layer in pair)
    rounded.A_log.data, rounded.norm.weight.data = exact.A_log.data, exact.norm.weight.data  # float32 on disk

    def call(layer: nn.Module, dtype: torch.dtype) -> torch.Tensor:
        output: torch.Tensor = layer.linear_attn(layer.input_layernorm(hidden.to(dtype))[None])[0]
        return output

    assert_explained(models.joined(states), *pair, call, num_roundings=20)


@torch.inference_mode()
def test_moe_on_tokens_whose_experts_are_beyond_doubt(models: Models, hidden: torch.Tensor) -> None:
    """Routing is forced by taking only tokens whose k-th and next expert lie further apart than three roundings of the
    logits can move them. The norm; router logit, its share; gate, up, silu, product, down, weighted sum; the shared
    expert's gate logit, sigmoid, gate, up, silu, product, down, product; the sum of both: 18, and a logit's rounding
    (of a value up to 4) moves its share by 4 times as much: 21."""
    worker, pair = models.runner.worker, (models.exact.model.layers[1], models.rounded.model.layers[1])
    router, top_k = pair[0].mlp.gate.weight, models.exact.config.num_experts_per_tok
    logits = (pair[0].post_attention_layernorm(hidden.float()) @ router.t()).sort(descending=True).values
    margin = logits[:, top_k - 1] - logits[:, top_k]
    kept = hidden[margin > 6 * ROUNDING * logits.abs().max()]
    assert len(kept) >= BEYOND_DOUBT
    layer = worker.model.layers[1]
    states = worker.ops.experts(
        without_residual(kept), layer.post_attention_layernorm, layer.mlp, models.batch_of(len(kept))
    )

    def call(layer: nn.Module, dtype: torch.dtype) -> torch.Tensor:
        output: torch.Tensor = layer.mlp(layer.post_attention_layernorm(kept.to(dtype))[None])[0]
        return output

    assert_explained(models.joined(states), *pair, call, num_roundings=21)


@torch.inference_mode()
def test_embedding_has_no_rounding_and_the_head_two(models: Models, hidden: torch.Tensor) -> None:
    model = models.runner.worker.model
    ids = random_tokens(models.length, models.exact.config.vocab_size)
    batch = models.batch()
    token_ids = torch.tensor(ids, dtype=batch.token_ids.dtype, device=models.device)
    rows = torch.arange(models.length, device=models.device)
    batch = replace(batch, token_ids=token_ids, sample_rows=rows)
    embedded = model.embed_tokens(batch, model.ops, SingleRank())
    assert torch.equal(embedded.float(), models.exact.model.embed_tokens(token_ids))
    ours = model.lm_head(without_residual(hidden), batch, model.norm, model.ops, SingleRank())
    assert ours.dtype == torch.bfloat16

    def call(reference: nn.Module, dtype: torch.dtype) -> torch.Tensor:
        logits: torch.Tensor = reference.lm_head(reference.model.norm(hidden.to(dtype)))
        return logits

    assert_explained(ours, models.exact, models.rounded, call, num_roundings=2)
