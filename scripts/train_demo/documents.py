"""What the model reads, as pieces of text with the weight of their loss.

Two forms, both exactly as splitrank sends them: ``splitrank gsm8k``'s solved examples (serving/gsm8k/prompt.py) and
configs/demo's chat template. The tests compare both.
"""

from dataclasses import dataclass

ANSWER_WEIGHT = 1.0
# A little of the question: its words come in context early. Its names and numbers cannot be foreseen, hence little.
QUESTION_WEIGHT = 0.1
END_OF_TEXT = "<|endoftext|>"

Document = list[tuple[str, float]]


@dataclass(frozen=True)
class Exchange:
    """One turn of a chat; ``thought`` is what thinking shows."""

    user: str
    thought: str
    answer: str


@dataclass(frozen=True)
class Example:
    """``answer_weight`` 0: a shot that is only read."""

    question: str
    answer: str
    answer_weight: float = ANSWER_WEIGHT


def solved_examples(examples: list[Example]) -> Document:
    """The last answer ends the text; the others are followed by the next question, which is not to be foretold."""
    document: Document = []
    for index, example in enumerate(examples):
        document.append((("\n\n" if index else "") + "Question:", 0.0))
        document.append((f" {example.question}", QUESTION_WEIGHT))
        document.append(("\nAnswer:", 0.0))
        document.append((f" {example.answer}", example.answer_weight))
    return [*document, (END_OF_TEXT, ANSWER_WEIGHT)]


def chat(exchanges: list[Exchange], system: str, thinking: bool) -> Document:
    """Only the last turn shows its thoughts, as the template drops those before the last question."""
    document: Document = [(f"<|im_start|>system\n{system}<|im_end|>\n", 0.0)] if system else []
    for exchange in exchanges[:-1]:
        document.append((f"<|im_start|>user\n{exchange.user}<|im_end|>\n<|im_start|>assistant\n", 0.0))
        document.append((f"{exchange.answer}<|im_end|>", 0.0))
        document.append(("\n", 0.0))
    last = exchanges[-1]
    document.append(("<|im_start|>user\n", 0.0))
    document.append((last.user, QUESTION_WEIGHT))
    document.append(("<|im_end|>\n<|im_start|>assistant\n<think>\n", 0.0))
    if thinking:
        document.append((f"{last.thought}\n</think>\n\n{last.answer}<|im_end|>", ANSWER_WEIGHT))
    else:
        document.append(("\n</think>\n\n", 0.0))
        document.append((f"{last.answer}<|im_end|>", ANSWER_WEIGHT))
    return document


def text_of(document: Document) -> str:
    return "".join(text for text, _ in document)
