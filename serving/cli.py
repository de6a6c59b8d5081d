"""The ``splitrank`` command: runs a sub-command, and reports a user's mistake in one line with an exit code.

Exit codes: 0 fine, 1 failed, 2 wrong command line, 130 interrupted, 141 nobody reads the output; a sub-command may add
its own. Sub-commands are imported when they run, so that ``--help`` and a wrong flag answer at once.
"""

import asyncio
import gc
import signal
import sys
import traceback
from collections.abc import Callable, Sequence
from typing import TypeVar

from splitrank import __version__
from splitrank.serving.options.config import EngineConfig, ServeConfig, with_launcher_options
from splitrank.serving.options.console import be_lenient_with_streams, exit_process, stop_output
from splitrank.serving.options.options import load_config

Config = TypeVar("Config")
READER_HAS_LEFT = 128 + signal.SIGPIPE  # what a shell shows for a program that this signal ends
Arguments = Sequence[str]


def _serve(argv: Arguments) -> int:
    """Serve a model over the OpenAI HTTP API; the demo checkpoint if none is given."""

    def run(config: ServeConfig) -> int:
        from splitrank.serving.http.server import serve

        gc.freeze()  # else the collector goes through all modules again and again, and all streams wait up to 0.1 s
        be_lenient_with_streams("stdout")
        return asyncio.run(serve(config))

    return _run("serve", _serve.__doc__, ServeConfig, run, argv)


def _generate(argv: Arguments) -> int:
    """Answer a file of OpenAI batch lines, without a server."""
    from splitrank.serving.batch.command import run
    from splitrank.serving.batch.config import GenerateConfig

    return _run("generate", _generate.__doc__, GenerateConfig, run, argv)


def _gsm8k(argv: Arguments) -> int:
    """Compare the GSM8K accuracy of several layouts, question by question."""
    from splitrank.serving.gsm8k.command import run
    from splitrank.serving.gsm8k.config import Gsm8kConfig

    return _run("gsm8k", _gsm8k.__doc__, Gsm8kConfig, run, argv)


def _plan(argv: Arguments) -> int:
    """Show what each rank would hold: weights, KV pages, states, capacity. Reads headers only."""
    from splitrank.serving.plan_command import PlanConfig, run_plan

    return _run("plan", _plan.__doc__, PlanConfig, run_plan, argv)


def _inspect(argv: Arguments) -> int:
    """Show what a checkpoint holds: layout of the experts, dtypes, MTP, vision, missing shards."""
    from splitrank.serving.plan_command import InspectConfig, run_inspect

    return _run("inspect", _inspect.__doc__, InspectConfig, run_inspect, argv)


def _bench(argv: Arguments) -> int:
    """Measure throughput and latency of the engine; JSON lines."""
    from splitrank.serving.bench import BenchConfig, run_bench

    return _run("bench", _bench.__doc__, BenchConfig, run_bench, argv)


COMMANDS: dict[str, Callable[[Arguments], int]] = {
    "serve": _serve,
    "generate": _generate,
    "gsm8k": _gsm8k,
    "plan": _plan,
    "inspect": _inspect,
    "bench": _bench,
}


def main(argv: Arguments | None = None) -> int:
    """Run the command line ``argv`` (default: the process's own). Returns the exit code."""
    arguments = list(sys.argv[1:] if argv is None else argv)
    try:
        code = _dispatch(arguments)
        sys.stdout.flush()
        return code
    except BrokenPipeError:  # whoever reads our output has read enough, as `| head` does
        stop_output()
        return READER_HAS_LEFT
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        return 130


def console() -> None:
    """Entry point of the installed command."""
    be_lenient_with_streams()
    exit_process(main())


def _dispatch(arguments: list[str]) -> int:
    if not arguments or arguments[0] in ("-h", "--help"):
        print(_overview(), file=sys.stdout if arguments else sys.stderr)
        return 0 if arguments else 2
    if arguments[0] == "--version":
        print(f"splitrank {__version__}")
        return 0
    if arguments[0] not in COMMANDS:
        print(f"splitrank: error: unknown command {arguments[0]!r}; one of {', '.join(COMMANDS)}", file=sys.stderr)
        return 2
    try:
        return COMMANDS[arguments[0]](arguments[1:])
    except SystemExit as exit_request:  # argparse raises it for --help and for mistakes
        return exit_request.code if isinstance(exit_request.code, int) else 1


def _overview() -> str:
    lines = [f"  {name:<10}{command.__doc__}" for name, command in COMMANDS.items()]
    return "\n".join(
        ["usage: splitrank COMMAND [options]", "", *lines, "", "splitrank COMMAND --help shows its options."]
    )


def _run(
    name: str,
    description: str | None,
    config_class: type[Config],
    run: Callable[[Config], int],
    argv: Arguments,
) -> int:
    prog = f"splitrank {name}"
    config = load_config(config_class, argv, prog, description or "")
    try:
        if isinstance(config, EngineConfig):
            config = with_launcher_options(config)
            if config.node_rank > 0:
                return _run_as_member(config, name)
        code = run(config)
        sys.stdout.flush()
        return code
    except BrokenPipeError:
        raise
    except _users_errors() as error:
        if getattr(config, "log_level", "") == "debug":
            traceback.print_exc()
        print(f"{prog}: error: {' '.join(str(error).split())}", file=sys.stderr)
        return 1


def _run_as_member(config: EngineConfig, name: str) -> int:
    """The command on a host that is not the first: its ranks alone, for each engine that the first one starts."""
    from splitrank.serving.gsm8k.config import Gsm8kConfig, engine_configs
    from splitrank.serving.launch.machine import usable_cores
    from splitrank.serving.launch.member import run_member

    configs = engine_configs(config, usable_cores()) if isinstance(config, Gsm8kConfig) else [config]
    return run_member([one for one in configs if one.num_nodes > 1], name)


def _users_errors() -> tuple[type[Exception], ...]:
    """Errors that need no traceback: wrong input, unreadable files, an engine that does not start or dies.

    Called only after an exception, so that the command line starts without the engine's libraries.
    """
    from splitrank.serving.launch.engine_client import EngineDeadError, EngineStartError

    return (ValueError, OSError, EngineStartError, EngineDeadError)
