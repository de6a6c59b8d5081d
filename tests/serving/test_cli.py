"""The command line as a user meets it: exit codes, one-line errors, fast help."""

import os
import re
import subprocess
import sys

import pytest

from splitrank import __version__
from splitrank.serving import cli
from splitrank.serving.launch.engine_client import EngineDeadError, EngineStartError
from splitrank.serving.options.config import EngineConfig
from tests.support.limits import PROGRAM_S, scaled


def run_with(error: BaseException | None, *argv: str) -> int:
    """The command ``probe``, whose work raises ``error`` or returns 3."""

    def work(config: EngineConfig) -> int:
        if error is not None:
            raise error
        return 3

    return cli._run("probe", "Probe.", EngineConfig, work, argv)


def test_the_exit_code_of_the_sub_command_is_passed_on() -> None:
    assert run_with(None) == 3


@pytest.mark.parametrize(
    "error",
    [
        ValueError("bad\nnumber 7"),
        FileNotFoundError(2, "No such file", "x"),
        EngineStartError("rank 1"),
        EngineDeadError("x"),
    ],
)
def test_a_users_mistake_is_one_line_and_code_1(capsys, error: Exception) -> None:
    assert run_with(error) == 1
    (line,) = capsys.readouterr().err.splitlines()
    assert line == f"splitrank probe: error: {' '.join(str(error).split())}"


def test_debug_shows_the_traceback(capsys) -> None:
    assert run_with(ValueError("bad"), "--log-level", "debug") == 1
    assert "Traceback" in capsys.readouterr().err


def test_our_own_mistakes_are_not_hidden() -> None:
    with pytest.raises(AssertionError):
        run_with(AssertionError())


def test_an_interrupt_is_130_without_a_traceback(capsys, monkeypatch) -> None:
    monkeypatch.setitem(cli.COMMANDS, "probe", lambda argv: run_with(KeyboardInterrupt()))
    assert cli.main(["probe"]) == 130
    assert capsys.readouterr().err == "interrupted\n"


@pytest.mark.parametrize("command", list(cli.COMMANDS))
def test_every_command_has_help_and_refuses_unknown_flags(capsys, command: str) -> None:
    assert cli.main([command, "--help"]) == 0
    assert re.match(rf"usage: splitrank {command} (--input FILE --output FILE )?\[options\]\n", capsys.readouterr().out)
    assert cli.main([command, "--no-such-flag"]) == 2
    assert capsys.readouterr().err.startswith(f"splitrank {command}: error: unknown argument --no-such-flag")


def test_the_overview_names_every_command(capsys) -> None:
    assert cli.main(["--help"]) == 0
    overview = capsys.readouterr().out
    assert all(f"\n  {command} " in overview for command in cli.COMMANDS)
    assert cli.main([]) == 2


def test_version_and_unknown_commands(capsys) -> None:
    assert cli.main(["--version"]) == 0
    assert capsys.readouterr().out == f"splitrank {__version__}\n"
    assert cli.main(["srve"]) == 2
    assert "unknown command 'srve'" in capsys.readouterr().err


def test_help_loads_no_library() -> None:
    program = (
        "import sys; from splitrank.serving.cli import main; main(['serve', '--help']);"
        "print([name for name in ('torch', 'zmq', 'tokenizers', 'starlette') if name in sys.modules])"
    )
    finished = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, check=True, timeout=scaled(PROGRAM_S)
    )
    assert finished.stdout.splitlines()[-1] == "[]"


@pytest.mark.parametrize("unbuffered", ["", "1"])
def test_a_reader_that_has_read_enough_is_no_error(unbuffered: str) -> None:
    reader, writer = os.pipe()
    os.close(reader)
    finished = subprocess.run(
        [sys.executable, "-m", "splitrank.serving", "plan"], stdout=writer, stderr=subprocess.PIPE, text=True,
        timeout=scaled(PROGRAM_S), env=os.environ | {"PYTHONUNBUFFERED": unbuffered},
    )  # fmt: skip
    os.close(writer)
    assert (finished.returncode, finished.stderr) == (141, "")
