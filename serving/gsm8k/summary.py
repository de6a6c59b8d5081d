"""From answers to numbers: one summary a layout, one a pair of layouts, and the verdict."""

from dataclasses import dataclass
from itertools import combinations

from splitrank.serving.gsm8k.config import Layout
from splitrank.serving.gsm8k.data import Question
from splitrank.serving.gsm8k.extract import extract_flexible, extract_strict
from splitrank.serving.gsm8k.logits import LogitComparison, compare_logits
from splitrank.serving.gsm8k.run import Answer, LayoutRun
from splitrank.serving.gsm8k.statistics import Accuracy, PairedComparison, accuracy, compare_paired

EXTRACTIONS = {"strict": extract_strict, "flexible": extract_flexible}
MIN_ACCURACY = 0.05  # below it, there are too few right answers to show a difference
MAX_UNPARSABLE = 0.5  # above it, the extraction is measured, not the model
MAX_P = 0.01  # below it, divided by the number of pairs, two layouts disagree


@dataclass(frozen=True)
class ExtractionSummary:
    """``right[i]`` is question i; a lost question is not right, and not in the accuracy."""

    right: list[bool]
    numbers: list[str | None]
    accuracy: Accuracy
    num_unparsable: int

    @property
    def uninformative(self) -> str | None:
        """Why a comparison by this extraction is uninformative; None if it is not."""
        count = self.accuracy.num_answers
        if count and self.num_unparsable > MAX_UNPARSABLE * count:
            return f"{self.num_unparsable} of {count} answers are unparsable"
        if self.accuracy.value < MIN_ACCURACY:
            return f"only {self.accuracy.num_right} of {count} answers are right"
        return None


@dataclass(frozen=True)
class LayoutSummary:
    """Counts over the answers that were not lost; ``num_tokens`` are generated tokens."""

    layout: Layout
    extractions: dict[str, ExtractionSummary]
    num_answers: int
    num_lost: int
    first_error: str | None  # of the lost requests
    num_cut_off: int
    num_tokens: int
    seconds: float


@dataclass(frozen=True)
class PairSummary:
    """Over the questions that both layouts answered; ``comparisons`` one an extraction."""

    first: Layout
    second: Layout
    comparisons: dict[str, PairedComparison]
    num_identical: int
    num_questions: int
    logits: LogitComparison

    @property
    def is_identical(self) -> bool:
        return self.num_identical == self.num_questions and self.logits.first is None


@dataclass(frozen=True)
class Summary:
    layouts: list[LayoutSummary]
    pairs: list[PairSummary]
    concurrency: int
    exact: frozenset[Layout] = frozenset()  # whose bits are equal, however many questions are asked at once

    @property
    def max_p(self) -> float:
        """The bound for one pair. Over all pairs, the chance that an extraction shows a false disagreement is at most
        ``MAX_P`` (Bonferroni); for both extractions it is a little more, as they read the same answers."""
        return MAX_P / max(1, len(self.pairs))

    @property
    def disagreements(self) -> list[tuple[PairSummary, str]]:
        """Pairs whose answers differ significantly, with the extraction that shows it."""
        found = [(pair, name) for pair in self.pairs for name in EXTRACTIONS]
        return [(pair, name) for pair, name in found if pair.comparisons[name].mcnemar_p < self.max_p]

    @property
    def altered(self) -> list[PairSummary]:
        """Pairs whose answers or logits differ, but must not: both are exact, or differ in stages only and were asked
        one by one."""
        return [pair for pair in self.pairs if self._are_alike(pair) and not pair.is_identical]

    def _are_alike(self, pair: PairSummary) -> bool:
        return self.are_exact(pair) or (self.concurrency == 1 and pair.first.tp == pair.second.tp)

    def are_exact(self, pair: PairSummary) -> bool:
        return self.exact >= {pair.first, pair.second}

    @property
    def num_lost(self) -> int:
        return sum(layout.num_lost for layout in self.layouts)


def summarise(
    questions: list[Question], runs: list[LayoutRun], concurrency: int, exact: frozenset[Layout] = frozenset()
) -> Summary:
    layouts = [_summarise_layout(questions, run) for run in runs]
    pairs = [_compare(runs[i], runs[j], layouts[i], layouts[j]) for i, j in combinations(range(len(runs)), 2)]
    return Summary(layouts, pairs, concurrency, exact)


def _summarise_layout(questions: list[Question], run: LayoutRun) -> LayoutSummary:
    kept = [answer for answer in run.answers if answer.error is None]
    return LayoutSummary(
        layout=run.layout,
        extractions={name: _extract(name, questions, run.answers) for name in EXTRACTIONS},
        num_answers=len(kept),
        num_lost=len(run.answers) - len(kept),
        first_error=next((answer.error for answer in run.answers if answer.error is not None), None),
        num_cut_off=sum(answer.finish_reason == "length" for answer in kept),
        num_tokens=sum(len(answer.token_ids) for answer in kept),
        seconds=run.seconds,
    )


def _extract(name: str, questions: list[Question], answers: list[Answer]) -> ExtractionSummary:
    extract = EXTRACTIONS[name]
    numbers = [extract(answer.text) if answer.error is None else None for answer in answers]
    right = [number == question.reference for number, question in zip(numbers, questions, strict=True)]
    kept = [index for index, answer in enumerate(answers) if answer.error is None]
    unparsable = sum(numbers[index] is None for index in kept)
    return ExtractionSummary(right, numbers, accuracy([right[index] for index in kept]), unparsable)


def _compare(first: LayoutRun, second: LayoutRun, a: LayoutSummary, b: LayoutSummary) -> PairSummary:
    both = list(zip(first.answers, second.answers, strict=True))
    kept = [index for index, (x, y) in enumerate(both) if x.error is None and y.error is None]
    comparisons = {
        name: compare_paired(*([side.extractions[name].right[index] for index in kept] for side in (a, b)))
        for name in EXTRACTIONS
    }
    identical = sum(both[index][0].text == both[index][1].text for index in kept)
    logits = compare_logits(first.answers, second.answers, kept)
    return PairSummary(first.layout, second.layout, comparisons, identical, len(kept), logits)
