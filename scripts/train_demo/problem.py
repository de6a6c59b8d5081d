"""A word problem with its typed solution, and the check that every generated one passes."""

from dataclasses import dataclass

from arithmetic import apply, equations, wrong_equations

MAX_VALUE = 9_999  # of any number in a problem; the set of larger numbers goes beyond


@dataclass(frozen=True)
class Step:
    """``terms`` are numbers and operators in turn, read from left to right; ``sentence`` shows them."""

    terms: tuple[str, ...]
    value: int
    sentence: str


@dataclass(frozen=True)
class Problem:
    """``combination`` names kind and numbers: what train and test never share. ``frame``: its sentence frame."""

    kind: str
    frame: str
    combination: str
    question: str
    steps: tuple[Step, ...]

    @property
    def result(self) -> int:
        return self.steps[-1].value

    @property
    def answer(self) -> str:
        """One sentence a step, then the number, as GSM8K does (without its calculator marks, see README.md)."""
        return "\n".join([*(step.sentence for step in self.steps), f"#### {self.result}"])

    @property
    def thought(self) -> str:
        """The working: what the chat form thinks before it writes the same as its answer."""
        return "\n".join(step.sentence for step in self.steps)


def verify(problem: Problem, max_value: int = MAX_VALUE) -> Problem:
    """Recomputes each step and each shown equality. AssertionError for a wrong one: a generator's bug."""
    for step in problem.steps:
        value = int(step.terms[0])
        for operator, operand in zip(step.terms[1::2], step.terms[2::2], strict=True):
            value = apply(value, operator, int(operand))
        assert value == step.value, (problem.kind, step)
        assert 2 <= value <= max_value, (problem.kind, step)
        shown = equations(step.sentence)
        assert shown, (problem.kind, step.sentence)
        assert not wrong_equations(step.sentence), (problem.kind, step.sentence)
        assert shown[-1].rsplit("=", 1)[1].strip() == str(value), (problem.kind, step.sentence)
        assert shown[0].replace(" ", "").startswith("".join(step.terms[:3])), (problem.kind, step.sentence)
    text = problem.question + problem.answer
    assert not set("{}[]|") & set(text), (problem.kind, text)
    assert "  " not in text, (problem.kind, text)
    return problem
