import os
import signal
import stat
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest

from splitrank.serving.launch.launcher import load_spec, make_run_dir, remove_run_dir
from tests.support.fake_model import small_spec
from tests.support.limits import PROGRAM_S, scaled


def test_the_run_folder_is_private_and_holds_the_spec() -> None:
    spec = make_run_dir(small_spec(eos_token_ids=(3, 4)))
    try:
        assert stat.S_IMODE(os.stat(spec.run_dir).st_mode) == 0o700
        assert spec.front_pid == os.getpid()
        assert load_spec(spec.run_dir) == spec
    finally:
        remove_run_dir(spec.run_dir)
    assert not Path(spec.run_dir).exists()


def test_a_process_whose_folder_is_gone_ends_in_one_line(tmp_path: Path) -> None:
    with pytest.raises(SystemExit) as end:
        load_spec(str(tmp_path / "gone"))
    assert str(end.value) == f"{tmp_path / 'gone'} is gone: the command that started this process has ended"


DIES_EARLY = """
import os, signal, sys
from splitrank.serving.launch.launcher import make_run_dir
from tests.support.fake_model import small_spec
print(make_run_dir(small_spec()).run_dir, flush=True)
sys.stdin.readline()
os.kill(os.getpid(), signal.SIGKILL)
"""


def test_the_folder_of_a_killed_front_is_removed_by_a_later_start(monkeypatch: pytest.MonkeyPatch) -> None:
    with tempfile.TemporaryDirectory(prefix="sr-") as parent:
        monkeypatch.setattr(tempfile, "tempdir", parent)
        strange = Path(parent, "splitrank-notes")
        strange.mkdir()  # of somebody who knows nothing of locks
        with subprocess.Popen(
            [sys.executable, "-c", DIES_EARLY], env=os.environ | {"TMPDIR": parent}, stdin=-1, stdout=-1, text=True
        ) as front:
            assert front.stdin is not None
            assert front.stdout is not None
            killed = Path(front.stdout.readline().strip())
            first = Path(make_run_dir(small_spec()).run_dir)
            assert killed.is_dir()  # it lives
            front.stdin.write("\n")
            front.stdin.flush()
            assert front.wait(scaled(PROGRAM_S)) == -signal.SIGKILL
        assert killed.is_dir()
        second = Path(make_run_dir(small_spec()).run_dir)
        assert sorted(Path(parent).iterdir()) == sorted((strange, first, second))
        for folder in (first, second):
            remove_run_dir(str(folder))


def test_a_path_too_long_for_a_socket_is_refused_with_the_numbers(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    deep = tmp_path / ("x" * 100)
    deep.mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(deep))
    with pytest.raises(ValueError, match=r"has \d+ bytes, the limit is 107: set TMPDIR"):
        make_run_dir(small_spec())
    assert list(deep.iterdir()) == []


def test_a_spec_that_cannot_be_written_leaves_no_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    short = tempfile.mkdtemp(prefix="sr-")
    monkeypatch.setattr(tempfile, "tempdir", short)
    try:
        with pytest.raises(OverflowError):
            make_run_dir(small_spec(seed=2**64))
        with pytest.raises(UnicodeEncodeError):
            make_run_dir(small_spec(model_dir="\ud800"))
        assert list(Path(short).iterdir()) == []
    finally:
        os.rmdir(short)
