"""The prompt of lm-eval's ``gsm8k`` task: solved examples, then the question."""

from splitrank.serving.gsm8k.data import Question
from splitrank.serving.protocol.sampling_params import SamplingParams

STOP_STRINGS = ("Question:", "</s>", "<|im_end|>")


def build_prompt(question: str, shots: list[Question]) -> str:
    """Ends in ``Answer:`` without a space, so that the model's first token brings it."""
    solved = [f"Question: {shot.question}\nAnswer: {shot.answer}" for shot in shots]
    return "\n\n".join([*solved, f"Question: {question}\nAnswer:"])


def greedy_params(max_tokens: int) -> SamplingParams:
    return SamplingParams(temperature=0.0, max_tokens=max_tokens, stop=STOP_STRINGS)
