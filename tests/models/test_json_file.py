"""The reader of a checkpoint's JSON files: an object, or one line that names the file."""

from pathlib import Path

import pytest

from splitrank.models.errors import CheckpointError
from splitrank.models.json_file import read_json_object


def test_an_object_is_read(tmp_path: Path) -> None:
    (tmp_path / "a.json").write_text('{"text": "é"}', encoding="utf-8")
    assert read_json_object(tmp_path / "a.json") == {"text": "é"}


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (b"{", "not readable as JSON"),
        (b"\xff{}", "not readable as JSON"),
        (b"[" * 100_000, "not readable as JSON"),
        (b'{"n": ' + b"9" * 5000 + b"}", "not readable as JSON"),
        (b"[1]", "not a JSON object"),
    ],
    ids=["cut", "not utf-8", "deep", "huge number", "list"],
)
@pytest.mark.parametrize("optional", [False, True])
def test_anything_else_is_refused_by_name(tmp_path: Path, content: bytes, words: str, optional: bool) -> None:
    file = tmp_path / "a.json"
    file.write_bytes(content)
    with pytest.raises(CheckpointError, match=rf"^{file}: {words}") as caught:
        read_json_object(file, optional=optional)
    assert "\n" not in str(caught.value)


def test_only_an_optional_file_may_be_missing(tmp_path: Path) -> None:
    assert read_json_object(tmp_path / "a.json", optional=True) == {}
    with pytest.raises(CheckpointError, match=r"a\.json: no such file"):
        read_json_object(tmp_path / "a.json")
