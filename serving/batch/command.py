"""``splitrank generate``: checks what concerns all requests, loads the model, answers what is not answered yet.

A bad line gets an error as its result; the other lines are answered.
Exit codes: 0 all requests answered, 3 some failed (their lines hold the error; a rerun asks them again), 1 not finished
(what is finished stays; a rerun continues), 2 nothing was started because input, output or options are wrong.
"""

import asyncio
import os
import signal
import sys
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path

from splitrank.serving.batch.config import GenerateConfig
from splitrank.serving.batch.lines import (
    BadLine,
    BatchLine,
    as_api_error,
    error_line,
    read_lines,
    read_rows,
    result_line,
)
from splitrank.serving.batch.manifest import (
    check_manifest,
    describe_run,
    locked_manifest,
    manifest_path,
    write_manifest,
)
from splitrank.serving.batch.result_file import ResultWriter, keep_only, new_content_path, read_former_results
from splitrank.serving.launch.engine_client import EngineDeadError
from splitrank.serving.openai.errors import ApiError
from splitrank.serving.openai.requests import ParsedRequest
from splitrank.serving.openai.service import OpenAIService
from splitrank.serving.openai.settings import ApiSettings
from splitrank.serving.options.progress import progress
from splitrank.serving.text.fan_out import fan_out
from splitrank.serving.text.text_engine import PreparedModel, TextEngine, prepare_model, start_prepared


@dataclass
class _Job:
    """``lines`` are still to be answered, ``num_before`` were answered before; counts the results of this run."""

    lines: list[BatchLine]
    num_before: int
    source: Path
    output: Path
    concurrency: int
    seed: int
    settings: ApiSettings
    num_answered: int = field(default=0, init=False)
    num_failed: int = field(default=0, init=False)
    first_failure: str = field(default="", init=False)

    def fail(self, line: BatchLine | BadLine, error: ApiError) -> bytes:
        """Counts the failure; returns its result line."""
        self.num_failed += 1
        self.first_failure = self.first_failure or f"{self.source}:{line.number}: {' '.join(error.message.split())}"
        return error_line(line, error)


def run(config: GenerateConfig) -> int:
    """Returns the exit code. EngineStartError passes through."""
    with ExitStack() as stack:
        try:
            check_paths(config)
            prepared = prepare_model(config, config.served_model_name)
            job = _prepare(config, prepared, stack)
        except (ValueError, OSError) as error:
            _say(f"error: {error}")
            return 2
        return asyncio.run(_generate(prepared, job)) if job.lines else _finished(job)


def _say(text: str) -> None:
    print(f"splitrank generate: {text}", file=sys.stderr, flush=True)


def check_paths(config: GenerateConfig) -> None:
    """``ValueError`` for paths that would lose data, or would fail after hours of work."""
    source, output = Path(config.input), Path(config.output)
    if not source.is_file():
        raise ValueError(f"input {source} is {'a folder' if source.is_dir() else 'not a file'}")
    if config.output == "-":
        raise ValueError("output - is no file; a rerun continues the output, so it cannot be a stream")
    if output.is_dir():
        raise ValueError(f"output {output} is a folder")
    for written in (output, manifest_path(output), new_content_path(output)):
        if written.exists() and written.samefile(source):
            raise ValueError(f"output {output} writes {written}, and that is the input file")
        if written.exists() and not written.is_file():
            raise ValueError(f"output {written} is {'a folder' if written.is_dir() else 'not a regular file'}")
        if written.exists() and not os.access(written, os.W_OK):
            raise ValueError(f"output {written} is not writable")
    if not output.parent.is_dir() or not os.access(output.parent, os.W_OK | os.X_OK):
        raise ValueError(f"output {output}: the folder {output.parent} does not exist or is not writable")


def _prepare(config: GenerateConfig, prepared: PreparedModel, stack: ExitStack) -> _Job:
    """Reads the input, locks the output, continues or empties it, and finds the lines that remain."""
    source = Path(config.input)
    lines, bad = read_lines(read_rows(source))
    if not lines and not bad:
        raise ValueError(f"{source} holds no requests")
    output = Path(config.output)
    settings = ApiSettings.of(config)
    now = describe_run(prepared.spec, settings)
    if not config.overwrite:
        check_manifest(output, now)
    manifest = stack.enter_context(locked_manifest(output))
    if config.overwrite or not output.exists():
        keep_only(output, [])
    former = read_former_results(output)
    _check_same_requests(output, former.finished, lines)
    if former.num_failed or former.torn:
        keep_only(output, former.kept)
    if not former.kept:
        write_manifest(manifest, now)
    remaining = [line for line in lines if line.custom_id not in former.finished]
    if former.kept or former.num_failed:
        _say(
            f"{output}: {len(former.kept)} answered before, {len(remaining)} to do ({former.num_failed} failed before)"
        )
    job = _Job(remaining, len(former.kept), source, output, config.concurrency, config.seed, settings)
    if bad:
        keep_only(output, [*former.kept, *(job.fail(line, line.error) for line in bad)])
    return job


def _check_same_requests(output: Path, finished: dict[str, str], lines: list[BatchLine]) -> None:
    """``ValueError`` if the output answers another request under one of the input's custom_ids."""
    asked = {line.custom_id: line.line_id for line in lines}
    for custom_id, line_id in finished.items():
        if asked.get(custom_id) != line_id:
            reason = "is not in the input" if custom_id not in asked else "has another body in the input now"
            raise ValueError(
                f"{output}: the answered custom_id {custom_id!r} {reason}; name another --output or give --overwrite"
            )


async def _generate(prepared: PreparedModel, job: _Job) -> int:
    task, terminated = asyncio.current_task(), asyncio.Event()
    assert task is not None

    def terminate() -> None:
        terminated.set()
        task.cancel()

    asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, terminate)
    try:
        await _run_engine(prepared, job)
    except (EngineDeadError, OSError) as error:
        return _not_finished(job, str(error))
    except asyncio.CancelledError:
        code = _not_finished(job, "terminated" if terminated.is_set() else "interrupted")
        if not terminated.is_set():
            raise  # Ctrl-C, which asyncio turns into a KeyboardInterrupt
        return code
    return _finished(job)


def _finished(job: _Job) -> int:
    if not job.num_answered and not job.num_failed:
        _say(f"{job.output}: all {job.num_before} requests were answered before")
        return 0
    first = f" (the first: {job.first_failure})" if job.num_failed else ""
    _say(f"{job.output}: {job.num_answered} answered, {job.num_failed} failed{first}")
    return 3 if job.num_failed else 0


def _not_finished(job: _Job, reason: str) -> int:
    of = job.num_before + len(job.lines)
    done = len(read_former_results(job.output).finished)  # what lies in the file: the last ones may not have got there
    _say(f"not finished ({reason}): {done} of {of} are answered; run the same command again to continue")
    return 1


async def _run_engine(prepared: PreparedModel, job: _Job) -> None:
    engine = await start_prepared(prepared)
    try:
        await _answer_all(engine, job)
    finally:
        await engine.close()


async def _answer_all(engine: TextEngine, job: _Job) -> None:
    service = OpenAIService(engine, job.settings)
    async with ResultWriter(job.output) as writer:
        with progress(job.num_before + len(job.lines), "generate", "requests", start=job.num_before) as bar:

            async def answer(line: BatchLine) -> None:
                writer.add(await _answer(service, line, job))
                bar.update()

            await fan_out(job.lines, job.concurrency, answer)


async def _answer(service: OpenAIService, line: BatchLine, job: _Job) -> bytes:
    """The result line of a request, or of its error. If the engine has died, there is none."""
    try:
        request = await asyncio.to_thread(service.parse, line.url, line.body)
        assert isinstance(request, ParsedRequest), "a batch line's url is one that generates"
        # Seeded by name, not by position: a continued run makes the draws that the first one would have made.
        seeded = request.with_seeds(job.seed, line.custom_id)
        result = result_line(line, 200, await service.complete(seeded), None)
    except EngineDeadError:
        raise
    except Exception as error:
        return job.fail(line, as_api_error(error))
    job.num_answered += 1
    return result
