import os
import stat
import tempfile
from pathlib import Path

import pytest

from splitrank.serving.launch.launcher import load_spec, make_run_dir, remove_run_dir
from tests.support.fake_model import small_spec


def test_the_run_folder_is_private_and_holds_the_spec() -> None:
    spec = make_run_dir(small_spec(eos_token_ids=(3, 4)))
    try:
        assert stat.S_IMODE(os.stat(spec.run_dir).st_mode) == 0o700
        assert spec.front_pid == os.getpid()
        assert load_spec(spec.run_dir) == spec
    finally:
        remove_run_dir(spec.run_dir)
    assert not Path(spec.run_dir).exists()


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
