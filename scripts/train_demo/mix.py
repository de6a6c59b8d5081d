"""The training mix: which documents, how often."""

import itertools
import random
from collections.abc import Callable, Iterator

import chatter
from documents import ANSWER_WEIGHT, Document, Example, Exchange, chat, solved_examples
from generator import problems
from gsm8k_train import Solved
from gsm8k_vary import vary
from problem import Problem

# Problems in one prompt, the asked one included. Six is what ``splitrank gsm8k`` sends; 18 come to 2,000 tokens.
NUM_EXAMPLES = (2, 3, 4, 5, 6, 6, 6, 6, 8, 10, 14, 18)
VARIED = 0.8
_SYSTEMS = (
    "You are a helpful assistant.",
    "You solve word problems step by step.",
    "Answer the question and show your working.",
    "Be brief.",
)
_HINTS = (
    "\nShow your working.",
    " Think step by step.",
    "\nPlease reason step by step, and put the final number after ####.",
    " Explain.",
)

Maker = Callable[[random.Random, Iterator[Problem], list[Solved]], Document]


def plain(rng: random.Random, source: Iterator[Problem], solved: list[Solved]) -> Document:
    problem = next(source)
    return solved_examples([Example(problem.question, problem.answer)])


def few_shot(rng: random.Random, source: Iterator[Problem], solved: list[Solved]) -> Document:
    """Every answer counts, so that a long prompt teaches as much per token as short ones."""
    chosen = itertools.islice(source, rng.choice(NUM_EXAMPLES))
    return solved_examples([Example(problem.question, problem.answer) for problem in chosen])


def chat_problem(rng: random.Random, source: Iterator[Problem], solved: list[Solved]) -> Document:
    problem = next(source)
    asked = Exchange(problem.question + _hint(rng), problem.thought, problem.answer)
    return _chat(rng, _history(rng, source), asked)


def gsm8k_plain(rng: random.Random, source: Iterator[Problem], solved: list[Solved]) -> Document:
    one = _gsm8k(rng, solved)
    return solved_examples([Example(one.question, one.answer)])


def gsm8k_few_shot(rng: random.Random, source: Iterator[Problem], solved: list[Solved]) -> Document:
    """Half of the time the shots carry calculator marks, as the file's do; the answer never does."""
    *shots, asked = [_gsm8k(rng, solved) for _ in range(rng.choice((3, 6, 6, 6, 9)))]
    if rng.random() < 0.5:
        examples = [Example(shot.question, shot.marked, 0.0) for shot in shots]
    else:
        examples = [Example(shot.question, shot.answer, ANSWER_WEIGHT) for shot in shots]
    return solved_examples([*examples, Example(asked.question, asked.answer)])


def gsm8k_chat(rng: random.Random, source: Iterator[Problem], solved: list[Solved]) -> Document:
    one = _gsm8k(rng, solved)
    return _chat(rng, _history(rng, source), Exchange(one.question + _hint(rng), one.thought, one.answer))


def small_talk(rng: random.Random, source: Iterator[Problem], solved: list[Solved]) -> Document:
    turn = chatter.turn(rng)
    return _chat(rng, _history(rng, source), Exchange(turn.user, turn.thought, turn.answer))


# Shares of documents; of tokens, few-shot is about a third and GSM8K about an eighth.
SHARES: dict[Maker, float] = {
    plain: 0.32,
    few_shot: 0.10,
    chat_problem: 0.35,
    gsm8k_plain: 0.04,
    gsm8k_few_shot: 0.01,
    gsm8k_chat: 0.03,
    small_talk: 0.15,
}
_NEEDS_GSM8K = (gsm8k_plain, gsm8k_few_shot, gsm8k_chat)


def documents(seed: str, solved: list[Solved]) -> Iterator[Document]:
    """Without end; the same for the same seed and ``solved``, which may be empty."""
    rng = random.Random(f"mix/{seed}")
    source = problems("train", seed, taught=True)
    makers = [maker for maker in SHARES if solved or maker not in _NEEDS_GSM8K]
    shares = [SHARES[maker] for maker in makers]
    while True:
        yield rng.choices(makers, shares)[0](rng, source, solved)


def _gsm8k(rng: random.Random, solved: list[Solved]) -> Solved:
    """Mostly with other numbers, where that can be done: about a third of them."""
    one = rng.choice(solved)
    return (vary(one, rng) if rng.random() < VARIED else None) or one


def _hint(rng: random.Random) -> str:
    return rng.choice(_HINTS) if rng.random() < 0.15 else ""


def _history(rng: random.Random, source: Iterator[Problem]) -> list[Exchange]:
    turns: list[Exchange] = []
    while rng.random() < 0.2 and len(turns) < 3:
        if rng.random() < 0.5:
            turn = chatter.turn(rng)
            turns.append(Exchange(turn.user, turn.thought, turn.answer))
        else:
            problem = next(source)
            turns.append(Exchange(problem.question, problem.thought, problem.answer))
    return turns


def _chat(rng: random.Random, history: list[Exchange], asked: Exchange) -> Document:
    system = rng.choice(_SYSTEMS) if rng.random() < 0.25 else ""
    thinking = bool(asked.thought) and rng.random() < 0.6
    return chat([*history, asked], system, thinking)
