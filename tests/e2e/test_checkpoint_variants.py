"""The demo checkpoint as finetunes leave theirs: it answers as the demo does, and tells what it made of it."""

from pathlib import Path
from typing import Any

import pytest

from splitrank import LLM
from splitrank.serving.offline.llm import LLMOutput
from splitrank.serving.protocol.sampling_params import SamplingParams
from tests.e2e.checkpoints import change_json, copy_demo
from tests.e2e.faulty_rank import FAULTY
from tests.e2e.servers import ForkedServer
from tests.support.fault_names import FAULT

pytestmark = pytest.mark.usefixtures("forked_ranks")
QUESTION = [{"role": "user", "content": "Tom has 5 pens and buys 4 more. How many pens does he have?"}]
IM_END, END_OF_TEXT = 4046, 4044


def ask(model: Path | str, **options: Any) -> tuple[LLMOutput, list[str]]:
    """One greedy chat answer, and the lines of the start."""
    with LLM(model or None, dtype="float32", threads_per_rank=1, max_model_len=1024, **options) as llm:
        params = SamplingParams(temperature=0, max_tokens=200)
        (answer,) = llm.chat(QUESTION, params, show_progress=False)
        return answer, llm._engine.client.reports  # type: ignore[attr-defined]


@pytest.fixture(scope="module")
def demo() -> LLMOutput:
    answer, lines = ask("")
    assert answer.finish_reason == "stop"
    assert answer.token_ids[-1] == IM_END
    assert lines[-1] == (
        "stop tokens: 4046 '<|im_end|>' (generation_config.json, tokenizer_config.json); "
        "4044 '<|endoftext|>' (generation_config.json, config.json)"
    )
    return answer


def test_a_chat_ends_although_the_configs_name_the_end_of_text_only(demo: LLMOutput, temporary: Path) -> None:
    """Without a ``generation_config.json``: the server below."""
    folder = copy_demo(temporary / "model")
    change_json(folder / "generation_config.json", lambda raw: raw.update(eos_token_id=END_OF_TEXT))
    answer, lines = ask(folder)
    assert (answer.token_ids, answer.finish_reason) == (demo.token_ids, "stop")
    assert "4046 '<|im_end|>' (tokenizer_config.json)" in lines[-1]
    assert "4044 '<|endoftext|>' (" in lines[-1]


def tie(folder: Path) -> None:
    def change(raw: dict[str, Any]) -> None:
        raw["tie_word_embeddings"] = raw["text_config"]["tie_word_embeddings"] = True

    change_json(folder / "config.json", change)


@pytest.mark.parametrize(  # alone: the server below
    "layout", [pytest.param({"pp": 2}, marks=pytest.mark.full), {"tp": 2}], ids=str
)
def test_a_head_of_its_own_is_used_although_the_config_ties_it(
    demo: LLMOutput, temporary: Path, layout: dict[str, int]
) -> None:
    tie(folder := copy_demo(temporary / "model"))
    answer, lines = ask(folder, verify_weights=True, **layout)
    assert answer.token_ids == demo.token_ids
    assert lines[-1].startswith("head: its own tensor (config.json ties it to the embedding, but both are stored")
    assert all("= planned, verified (" in line for line in lines if line.startswith("rank "))


def test_the_server_says_it_at_the_start_and_ends_a_chat(demo: LLMOutput, temporary: Path) -> None:
    tie(folder := copy_demo(temporary / "model"))
    (folder / "generation_config.json").unlink()
    with ForkedServer("--model", folder, "--dtype", "float32", "--max-model-len", 1024) as server:
        choice = server.client.chat.completions.create(
            model="model",
            messages=QUESTION,
            temperature=0,
            max_tokens=200,  # type: ignore[arg-type]
        ).choices[0]
        thoughts, _, answer = demo.text.partition("\n</think>\n\n")
        message: Any = choice.message
        assert (message.reasoning_content, message.content, choice.finish_reason) == (thoughts, answer, "stop")
        said = server.stderr
    assert "splitrank serve: stop tokens: 4044 '<|endoftext|>' (config.json); 4046 '<|im_end|>'" in said
    assert "splitrank serve: head: its own tensor (config.json ties it" in said


def test_weights_that_are_not_the_checkpoint_s_are_refused_in_one_line() -> None:
    """The fault is in the plan of two ranks, which its audits let pass: the experts of two layers are swapped. A server
    that starts in spite of it fails the test at once."""
    planted = {FAULT: "experts swapped between stages", **FAULTY}
    with pytest.raises(AssertionError, match=r"^the server ended with code 1: ") as refused:
        ForkedServer("--pp", 2, "--verify-weights", **planted).kill()
    said = str(refused.value)
    assert "Traceback" not in said
    (line,) = [line for line in said.splitlines() if "splitrank serve: error: " in line]
    assert "failed in load: rank " in line
    assert "parameter layers." in line
    assert "mlp.experts.gate_up_proj differs from tensor 'model.language_model.layers." in line
    assert "model.safetensors" in line
