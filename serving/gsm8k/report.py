"""The comparison as a table for people and as JSON for programs."""

import dataclasses
import hashlib
import json
import os
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from splitrank.serving.gsm8k.config import Gsm8kConfig
from splitrank.serving.gsm8k.data import Question, local_files
from splitrank.serving.gsm8k.run import Answer, LayoutRun
from splitrank.serving.gsm8k.statistics import Accuracy, PairedComparison
from splitrank.serving.gsm8k.summary import EXTRACTIONS, MAX_P, LayoutSummary, PairSummary, Summary


def check_report_path(config: Gsm8kConfig) -> None:
    """``ValueError`` if the report cannot be written, or would take the questions' place, before the hours of work."""
    path = Path(config.report)
    if path.is_dir():
        raise ValueError(f"--report {path} is a folder")
    if not path.parent.is_dir() or not os.access(path.parent, os.W_OK):
        raise ValueError(f"--report {path}: the folder {path.parent} does not exist or is not writable")
    for read in local_files(config):
        for written in (path, _new_content_path(path)):
            if written.exists() and read.exists() and written.samefile(read):
                raise ValueError(f"--report {path} writes {written}, and that is the file of questions {read}")


def _new_content_path(path: Path) -> Path:
    return path.with_name(path.name + ".part")


def table(summary: Summary) -> str:
    """One line a layout, two lines a pair, then the verdict."""
    lines = _layout_lines(summary.layouts)
    if summary.pairs:
        lines += ["", *_pair_lines(summary.pairs)]
    return "\n".join([*lines, "", *verdict_lines(summary)])


def verdict_lines(summary: Summary) -> list[str]:
    lines = warning_lines(summary)
    for pair, name in summary.disagreements:
        p = pair.comparisons[name].mcnemar_p
        lines.append(
            f"DISAGREE: {pair.first} and {pair.second} ({name}): McNemar p = {p:.2g} is below "
            f"{summary.max_p:.2g} ({MAX_P:g} / {len(summary.pairs)} pairs)"
        )
    lines += [_altered_line(pair, summary) for pair in summary.altered]
    for layout in summary.layouts:
        if layout.num_lost:
            lines.append(f"LOST: {layout.num_lost} requests of {layout.layout}; the first: {layout.first_error}")
    if summary.pairs and not lines:
        lines.append(f"no disagreement: every McNemar p is at least {summary.max_p:.2g} ({MAX_P:g} / pairs)")
    return lines + _proof_lines(summary)


def _altered_line(pair: PairSummary, summary: Summary) -> str:
    why = "both layouts are exact" if summary.are_exact(pair) else "asked one by one, stages must not change any"
    line = (
        f"ALTERED: {pair.first} and {pair.second} answer {pair.num_questions - pair.num_identical} of "
        f"{pair.num_questions} questions in other bytes; {why}"
    )
    logits = pair.logits
    if logits.first is None:
        return line
    return (
        f"{line}; {logits.num_rows - logits.num_equal} of {logits.num_rows} rows of logits differ, "
        f"the first at token {logits.first.token} of the answer to question {logits.first.question}"
    )


def _proof_lines(summary: Summary) -> list[str]:
    """What was proved of the exact layouts, if there are several and none differs."""
    proved = [pair for pair in summary.pairs if summary.are_exact(pair)]
    if not proved or not all(pair.is_identical and pair.logits.num_rows for pair in proved):
        return []
    fewest, rows = min(one.num_questions for one in proved), min(one.logits.num_rows for one in proved)
    layouts = {layout for pair in proved for layout in (pair.first, pair.second)}
    where = f"{len(layouts)} exact layouts, {summary.concurrency} questions at once"
    return [f"no bit differs: {fewest} answers and {rows} rows of logits in {where}"]


def warning_lines(summary: Summary) -> list[str]:
    """Warns of extractions with too few right or parsable answers: they cannot show a difference between layouts."""
    return [
        f"UNINFORMATIVE: {name} numbers of {layout.layout} cannot support a comparison: {reason}"
        for layout in summary.layouts
        for name in EXTRACTIONS
        if (reason := layout.extractions[name].uninformative)
    ]


def _layout_lines(layouts: list[LayoutSummary]) -> list[str]:
    head = ["layout", "strict", "unparsable", "flexible", "unparsable", "cut off", "lost", "tokens", "mean", "tokens/s"]
    return _aligned([head, *(_layout_row(layout) for layout in layouts)])


def _layout_row(layout: LayoutSummary) -> list[str]:
    row = [str(layout.layout)]
    for name in EXTRACTIONS:
        extraction = layout.extractions[name]
        row += [_percent(extraction.accuracy), str(extraction.num_unparsable)]
    mean, rate = _mean_tokens(layout), _rate(layout)
    counts = [layout.num_cut_off, layout.num_lost, layout.num_tokens]
    return row + [str(count) for count in counts] + [_or_dash(mean, ".1f"), _or_dash(rate, ".1f")]


def _pair_lines(pairs: list[PairSummary]) -> list[str]:
    head = ["pair", "numbers", "difference (points, 95%)", "only first right", "only second", "McNemar p", "identical"]
    head.append("logits")
    return _aligned([head, *(_pair_row(pair, name) for pair in pairs for name in EXTRACTIONS)])


def _pair_row(pair: PairSummary, name: str) -> list[str]:
    compared = pair.comparisons[name]
    identical = f"{pair.num_identical} of {pair.num_questions}"
    logits = f"{pair.logits.num_equal} of {pair.logits.num_rows}" if pair.logits.num_rows else "-"
    discordant = [str(compared.only_first_right), str(compared.only_second_right)]
    label = f"{pair.first} -> {pair.second}"
    return [label, name, _interval(compared), *discordant, f"{compared.mcnemar_p:.3g}", identical, logits]


def _aligned(rows: list[list[str]]) -> list[str]:
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    return ["  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in rows]


def _percent(value: Accuracy) -> str:
    error = "" if value.standard_error is None else f" ± {100 * value.standard_error:.2f}"
    return f"{100 * value.value:.2f}%{error}"


def _interval(compared: PairedComparison) -> str:
    text = f"{100 * compared.difference:+.2f}"
    if compared.interval_low is None or compared.interval_high is None:
        return text
    return f"{text} [{100 * compared.interval_low:+.2f}, {100 * compared.interval_high:+.2f}]"


def _mean_tokens(layout: LayoutSummary) -> float | None:
    return layout.num_tokens / layout.num_answers if layout.num_answers else None


def _rate(layout: LayoutSummary) -> float | None:
    return layout.num_tokens / layout.seconds if layout.seconds else None


def _or_dash(value: float | None, form: str) -> str:
    return "-" if value is None else format(value, form)


def write_json(
    path: Path,
    config: Gsm8kConfig,
    questions: list[Question],
    runs: list[LayoutRun],
    summary: Summary,
    traces: Iterable[str] = (),
) -> None:
    """All numbers, all texts, and a digest of each answer's logits. The file is written beside and renamed, so a reader
    never sees half a report."""
    report = {
        "config": dataclasses.asdict(config),
        "layouts": [_layout_json(layout) for layout in summary.layouts],
        "pairs": [_pair_json(pair, summary) for pair in summary.pairs],
        "verdict": [*verdict_lines(summary), *traces],
        "questions": [_question_json(index, questions, runs, summary) for index in range(len(questions))],
    }
    beside = _new_content_path(path)
    beside.write_text(json.dumps(report, indent=1, ensure_ascii=False, allow_nan=False) + "\n", encoding="utf-8")
    beside.replace(path)


def _layout_json(layout: LayoutSummary) -> dict[str, Any]:
    extractions = {
        name: {
            **dataclasses.asdict(found.accuracy),
            "unparsable": found.num_unparsable,
            "uninformative": found.uninformative,
        }
        for name, found in layout.extractions.items()
    }
    return {
        "layout": str(layout.layout),
        **extractions,
        "answers": layout.num_answers,
        "lost": layout.num_lost,
        "cut_off": layout.num_cut_off,
        "tokens": layout.num_tokens,
        "mean_answer_tokens": _mean_tokens(layout),
        "seconds": layout.seconds,
    }


def _pair_json(pair: PairSummary, summary: Summary) -> dict[str, Any]:
    comparisons = {name: dataclasses.asdict(compared) for name, compared in pair.comparisons.items()}
    identity = {"byte_identical": pair.num_identical, "questions": pair.num_questions, "max_p": summary.max_p}
    identity |= {"logit_rows": pair.logits.num_rows, "equal_logit_rows": pair.logits.num_equal}
    return {"first": str(pair.first), "second": str(pair.second), **comparisons, **identity}


def _question_json(index: int, questions: list[Question], runs: list[LayoutRun], summary: Summary) -> dict[str, Any]:
    answers = {}
    for run, layout in zip(runs, summary.layouts, strict=True):
        found = {
            name: {"number": value.numbers[index], "right": value.right[index]}
            for name, value in layout.extractions.items()
        }
        answer = run.answers[index]
        kept = {"text": answer.text, "finish_reason": answer.finish_reason, "tokens": len(answer.token_ids)}
        answers[str(run.layout)] = {**kept, "logits": _joined_digest(answer), "error": answer.error, **found}
    return {"question": questions[index].question, "reference": questions[index].reference, "answers": answers}


def _joined_digest(answer: Answer) -> str | None:
    """Of all rows, for comparing reports; None where there are none."""
    return hashlib.blake2b(b"".join(answer.digests), digest_size=8).hexdigest() if answer.digests else None
