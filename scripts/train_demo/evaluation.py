"""Greedy answers to small samples, scored as ``splitrank gsm8k`` scores them strictly."""

import re
from collections import Counter
from dataclasses import dataclass
from typing import Any

import torch
from generator import SPLITS
from gsm8k_train import Solved
from model_config import special_id
from problem import Problem
from tokenizers import Tokenizer
from write_splits import chosen

NUM_SHOTS = 5  # splitrank gsm8k's default
MAX_NEW_TOKENS = 256  # splitrank gsm8k's default
_STRICT = re.compile(r"#### (\-?[0-9\.\,]+)")


@dataclass(frozen=True)
class Task:
    prompt: str
    reference: str


@dataclass(frozen=True)
class Score:
    right: int
    asked: int
    unfinished: int  # not stopped by itself

    @property
    def accuracy(self) -> float:
        return self.right / max(1, self.asked)


def question_prompt(question: str, shots: list[tuple[str, str]]) -> str:
    """serving/gsm8k/prompt.py's."""
    solved = [f"Question: {asked}\nAnswer: {answer}" for asked, answer in shots]
    return "\n\n".join([*solved, f"Question: {question}\nAnswer:"])


def chat_prompt(question: str, thinking: bool) -> str:
    head = f"<|im_start|>user\n{question}<|im_end|>\n<|im_start|>assistant\n<think>\n"
    return head if thinking else head + "\n</think>\n\n"


def make_tasks(count: int, development: list[Solved]) -> dict[str, list[Task]]:
    """``count`` of each sort; the first of the test sets. GSM8K's are of its train split's held-back end."""
    splits = {split: chosen(split, count) for split in SPLITS if split != "train"}
    shots = [(one.question, one.answer) for one in chosen("train", NUM_SHOTS)]
    tasks = {split: [_task(one, []) for one in problems] for split, problems in splits.items()}
    tasks |= {f"{split}_5_shot": [_task(one, shots) for one in splits[split]] for split in ("seen", "new_frames")}
    tasks["seen_chat"] = [Task(chat_prompt(one.question, thinking=True), str(one.result)) for one in splits["seen"]]
    tasks["gsm8k_dev"] = [
        Task(question_prompt(one.question, []), one.answer.rpartition("#### ")[2].replace(",", "").strip())
        for one in development[:count]
    ]
    return {name: listed for name, listed in tasks.items() if listed}


def _task(problem: Problem, shots: list[tuple[str, str]]) -> Task:
    return Task(question_prompt(problem.question, shots), str(problem.result))


def evaluate(model: Any, tokenizer: Tokenizer, tasks: dict[str, list[Task]], batch_rows: int = 384) -> dict[str, Score]:
    """All tasks together, those of like length in one batch. Sets the model back to training afterwards."""
    listed = sorted(
        ((name, task) for name, named in tasks.items() for task in named), key=lambda one: len(one[1].prompt)
    )
    right, unfinished = Counter[str](), Counter[str]()
    model.eval()
    for start in range(0, len(listed), batch_rows):
        batch = listed[start : start + batch_rows]
        texts = generate(model, tokenizer, [task.prompt for _, task in batch])
        for (name, task), (text, stopped) in zip(batch, texts, strict=True):
            right[name] += _number(text) == task.reference
            unfinished[name] += not stopped
    model.train()
    return {name: Score(right[name], len(named), unfinished[name]) for name, named in tasks.items()}


def generate(
    model: Any, tokenizer: Tokenizer, prompts: list[str], max_new_tokens: int = MAX_NEW_TOKENS
) -> list[tuple[str, bool]]:
    """(text, whether it stopped by itself) of each prompt, greedy, in the weights' own type, padded on the left."""
    device = next(model.parameters()).device
    stops = [special_id("<|im_end|>"), special_id("<|endoftext|>")]
    rows = [tokenizer.encode(prompt, add_special_tokens=False).ids for prompt in prompts]
    longest = max(map(len, rows))
    ids = torch.tensor([[stops[1]] * (longest - len(row)) + row for row in rows], device=device)
    mask = torch.tensor([[0] * (longest - len(row)) + [1] * len(row) for row in rows], device=device)
    with torch.no_grad():
        made = model.generate(
            input_ids=ids,
            attention_mask=mask,
            do_sample=False,
            max_new_tokens=max_new_tokens,
            eos_token_id=stops,
            pad_token_id=stops[1],
        )
    return [_until_stop(tokenizer, row, stops) for row in made[:, longest:].tolist()]


def _until_stop(tokenizer: Tokenizer, ids: list[int], stops: list[int]) -> tuple[str, bool]:
    end = next((index for index, token in enumerate(ids) if token in stops), None)
    return tokenizer.decode(ids[:end], skip_special_tokens=False), end is not None


def _number(text: str) -> str | None:
    found = _STRICT.search(text)
    return found[1].replace(",", "").removesuffix(".") if found else None
