"""The model by a GPU's operations against transformers in float32: on the GPU where there is one, else interpreted.

The bound is twice the CPU's (``test_parity``): the kernels' sums run in blocks, in an order of their own.
"""

from typing import Any

import pytest
import torch

from tests.support.checkpoints import make_reference, random_text_config, write_checkpoint
from tests.support.stage_runner import StageRunner, random_tokens, relative_error

BOUND = 1e-4
LINEAR, FULL = "linear_attention", "full_attention"

SHAPES: dict[str, dict[str, Any]] = {
    "odd sizes": {
        "vocab_size": 389,
        "hidden_size": 60,
        "num_attention_heads": 3,
        "num_key_value_heads": 3,
        "linear_num_value_heads": 1,
        "num_experts": 7,
        "num_experts_per_tok": 3,
        "moe_intermediate_size": 20,
        "shared_expert_intermediate_size": 36,
        "linear_conv_kernel_dim": 2,
        "tie_word_embeddings": True,
    },
}
SMALL: dict[str, Any] = {
    "num_hidden_layers": 2,
    "layer_types": [LINEAR, FULL],
    "head_dim": 32,
    "num_attention_heads": 2,
    "num_key_value_heads": 1,
    "linear_num_key_heads": 1,
    "linear_num_value_heads": 2,
    "num_experts": 4,
}


@pytest.fixture(scope="module", params=SHAPES)
def pair(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> tuple[Any, StageRunner]:
    reference = make_reference(random_text_config(**{**SMALL, **SHAPES[request.param]}), seed=7)
    folder = write_checkpoint(reference, tmp_path_factory.mktemp("gpu"), dtype="float32")
    return reference, StageRunner(folder, folder, device="cuda", devices=(0,))


@torch.inference_mode()
def test_prefill_and_decode(pair: tuple[Any, StageRunner]) -> None:
    """A chunk of one block, one that ends inside a block, and a step of one row."""
    reference, runner = pair
    vocabulary = reference.config.vocab_size
    prompt, outputs = random_tokens(67, vocabulary, seed=1), random_tokens(1, vocabulary, seed=2)
    sequence = runner.start(len(prompt) + len(outputs))
    found = torch.cat([runner.prefill(sequence, prompt), runner.decode(sequence, outputs)])
    runner.end(sequence)
    expected = reference(torch.tensor([prompt + outputs])).logits[0]
    assert relative_error(found.float().cpu(), expected) <= BOUND
