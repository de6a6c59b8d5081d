"""``splitrank gsm8k``: check everything for all layouts, then run one after the other, then compare.

Exit codes: 0 all answered and no disagreement, 1 a request was lost or two layouts disagree.
"""

import asyncio
import sys
from dataclasses import dataclass
from pathlib import Path

from splitrank.serving.gsm8k.config import Gsm8kConfig, Layout, engine_configs
from splitrank.serving.gsm8k.data import Question, load_data
from splitrank.serving.gsm8k.prompt import build_prompt, greedy_params
from splitrank.serving.gsm8k.report import check_report_path, table, warning_lines, write_json
from splitrank.serving.gsm8k.run import LayoutRun, ask_all, lost_run
from splitrank.serving.gsm8k.summary import Summary, summarise
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


def run(config: Gsm8kConfig) -> int:
    """Returns the exit code. ValueError before anything starts: data, report path, layouts, prompts too long."""
    if config.report:
        check_report_path(config)
    plan = _prepare(config)
    runs: list[LayoutRun] = []
    for layout, prepared in plan.engines.items():
        runs.append(asyncio.run(_run_layout(config, plan, layout, prepared)))
        summary = summarise(plan.questions, runs, config.concurrency, plan.exact)
        if config.report:  # after each layout: if a later one fails, the answers so far are kept
            write_json(Path(config.report), config, plan.questions, runs, summary)
    return _conclude(summary)


def _prepare(config: Gsm8kConfig) -> _Plan:
    questions, shots = load_data(config)
    configs = engine_configs(config, usable_cores())
    engines = dict(zip(config.parsed_layouts(), map(prepare_model, configs), strict=True))
    tokenizer = next(iter(engines.values())).tokenizer
    prompts = [tokenizer.encode(build_prompt(question.question, shots)) for question in questions]
    for layout, prepared in engines.items():
        _check_lengths(config, prompts, layout, prepared.info.max_model_len)
    return _Plan(questions, prompts, engines)


def _check_lengths(config: Gsm8kConfig, prompts: list[list[int]], layout: Layout, max_model_len: int) -> None:
    longest = max(range(len(prompts)), key=lambda index: len(prompts[index]))
    num_tokens = len(prompts[longest])
    if num_tokens + config.max_tokens > max_model_len:
        raise ValueError(
            f"question {longest} has {num_tokens} prompt tokens with {config.shots} shots; with --max-tokens "
            f"{config.max_tokens} that is more than the {max_model_len} tokens of {layout}: lower --shots"
        )


async def _run_layout(config: Gsm8kConfig, plan: _Plan, layout: Layout, prepared: PreparedModel) -> LayoutRun:
    try:
        engine = await start_prepared(prepared)
    except EngineStartError as error:
        print(f"splitrank gsm8k: {layout} did not start: {error}", file=sys.stderr, flush=True)
        return lost_run(layout, len(plan.prompts), str(error))
    try:
        return await ask_all(engine, layout, plan.prompts, greedy_params(config.max_tokens), config.concurrency)
    finally:
        await engine.close()


def _conclude(summary: Summary) -> int:
    print(table(summary), flush=True)
    for warning in warning_lines(summary):
        print(f"splitrank gsm8k: {warning}", file=sys.stderr, flush=True)
    return 1 if summary.num_lost or summary.disagreements or summary.altered else 0
