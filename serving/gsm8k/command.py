"""``splitrank gsm8k``: check everything for all layouts, then run one after the other, then compare.

Exact layouts must give the same bytes, and the same bits of every row of logits. Where two differ, the question is
asked again in both with digests of every layer, first alone, then with those that were open beside it.

Exit codes: 0 all answered and no disagreement, 1 a request was lost or two layouts disagree.
"""

import asyncio
import sys
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import msgspec

from splitrank.serving.gsm8k.config import Gsm8kConfig, Layout, engine_configs
from splitrank.serving.gsm8k.data import Question, load_data
from splitrank.serving.gsm8k.prompt import build_prompt, greedy_params
from splitrank.serving.gsm8k.report import check_report_path, table, warning_lines, write_json
from splitrank.serving.gsm8k.run import LayoutRun, ask_all, lost_run
from splitrank.serving.gsm8k.summary import PairSummary, Summary, summarise
from splitrank.serving.gsm8k.trace import LayoutTrace, describe, first_divergence, read_trace
from splitrank.serving.launch.engine_client import EngineStartError
from splitrank.serving.launch.machine import usable_cores
from splitrank.serving.launch.resolve import is_exact
from splitrank.serving.text.text_engine import PreparedModel, prepare_model, start_prepared


@dataclass(frozen=True)
class _Plan:
    """What all layouts share, and each layout's engine, not started yet."""

    questions: list[Question]
    prompts: list[list[int]]
    engines: dict[Layout, PreparedModel]

    @property
    def exact(self) -> frozenset[Layout]:
        """The layouts that promise the same bits as each other."""
        return frozenset(layout for layout, prepared in self.engines.items() if is_exact(prepared.spec))


@dataclass(frozen=True)
class _Asked:
    """What one run asks an engine."""

    prompts: list[list[int]]
    max_tokens: int
    concurrency: int


def run(config: Gsm8kConfig) -> int:
    """Returns the exit code. ValueError before anything starts: data, report path, layouts, prompts too long."""
    if config.report:
        check_report_path(config)
    plan = _prepare(config)
    runs: list[LayoutRun] = []
    asked = _Asked(plan.prompts, config.max_tokens, config.concurrency)
    for layout, prepared in plan.engines.items():
        runs.append(asyncio.run(_run_layout(asked, layout, prepared)))
        summary = summarise(plan.questions, runs, config.concurrency, plan.exact)
        if config.report:  # after each layout: if a later one fails, the answers so far are kept
            write_json(Path(config.report), config, plan.questions, runs, summary)
    traces = list(_trace(config, plan, summary)) if config.trace else []
    if config.report and traces:
        write_json(Path(config.report), config, plan.questions, runs, summary, traces)
    return _conclude(summary, traces)


def _prepare(config: Gsm8kConfig) -> _Plan:
    questions, shots = load_data(config)
    configs = engine_configs(config, usable_cores())
    engines = dict(zip(config.parsed_layouts(), map(_with_digests, map(prepare_model, configs)), strict=True))
    tokenizer = next(iter(engines.values())).tokenizer
    prompts = [tokenizer.encode(build_prompt(question.question, shots)) for question in questions]
    for layout, prepared in engines.items():
        _check_lengths(config, prompts, layout, prepared.info.max_model_len)
    return _Plan(questions, prompts, engines)


def _with_digests(prepared: PreparedModel) -> PreparedModel:
    """An exact layout digests every row of logits."""
    return replace(prepared, spec=msgspec.structs.replace(prepared.spec, digests=is_exact(prepared.spec)))


def _check_lengths(config: Gsm8kConfig, prompts: list[list[int]], layout: Layout, max_model_len: int) -> None:
    longest = max(range(len(prompts)), key=lambda index: len(prompts[index]))
    num_tokens = len(prompts[longest])
    if num_tokens + config.max_tokens > max_model_len:
        raise ValueError(
            f"question {longest} has {num_tokens} prompt tokens with {config.shots} shots; with --max-tokens "
            f"{config.max_tokens} that is more than the {max_model_len} tokens of {layout}: lower --shots"
        )


async def _run_layout(asked: _Asked, layout: Layout, prepared: PreparedModel) -> LayoutRun:
    try:
        engine = await start_prepared(prepared)
    except EngineStartError as error:
        print(f"splitrank gsm8k: {layout} did not start: {error}", file=sys.stderr, flush=True)
        return lost_run(layout, len(asked.prompts), str(error))
    params = greedy_params(asked.max_tokens)
    try:
        return await ask_all(engine, layout, asked.prompts, params, asked.concurrency)
    finally:
        await engine.close()


def _trace(config: Gsm8kConfig, plan: _Plan, summary: Summary) -> Iterator[str]:
    """A line for each exact layout that differs from the first one."""
    found = [pair for pair in summary.altered if pair.logits.first is not None]
    for pair in found:
        if pair.first == found[0].first:
            yield f"TRACE: {pair.first} and {pair.second}: {_trace_pair(config, plan, pair)}"


def _trace_pair(config: Gsm8kConfig, plan: _Plan, pair: PairSummary) -> str:
    assert pair.logits.first is not None
    if any(plan.engines[layout].spec.num_nodes > 1 for layout in (pair.first, pair.second)):
        return "layers are traced on one host alone: compare these layouts there"
    if any(plan.engines[layout].spec.device != "cpu" for layout in (pair.first, pair.second)):
        return "layers are traced on a CPU alone"
    question, token = pair.logits.first.question, pair.logits.first.token
    beside = range(max(0, question - config.concurrency), min(len(plan.prompts), question + config.concurrency))
    lengths = [len(prompt) for prompt in plan.prompts]
    for questions, max_tokens in ((range(question, question + 1), token + 1), (beside, config.max_tokens)):
        asked = _Asked([plan.prompts[one] for one in questions], max_tokens, config.concurrency)
        traces = [_traced(asked, layout, plan.engines[layout]) for layout in (pair.first, pair.second)]
        if not all(trace.digests for trace in traces):
            return f"question {question} could not be asked again"
        if (divergence := first_divergence(*traces)) is not None:
            return describe(divergence, questions, lengths)
    return f"question {question} gave the same bits when it was asked again, alone and beside others"


def _traced(asked: _Asked, layout: Layout, prepared: PreparedModel) -> LayoutTrace:
    with tempfile.TemporaryDirectory(prefix="trace-") as folder:
        spec = msgspec.structs.replace(prepared.spec, trace_dir=folder)
        asyncio.run(_run_layout(asked, layout, replace(prepared, spec=spec)))
        return read_trace(str(layout), Path(folder))


def _conclude(summary: Summary, traces: Sequence[str]) -> int:
    print("\n".join([table(summary), *traces]), flush=True)
    for warning in warning_lines(summary):
        print(f"splitrank gsm8k: {warning}", file=sys.stderr, flush=True)
    return 1 if summary.num_lost or summary.disagreements or summary.altered else 0
