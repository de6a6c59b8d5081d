"""Output and manifest on disk: what a crash can leave behind, and what must never be mixed or overwritten."""

import asyncio
import json
import os
from pathlib import Path

import pytest

from splitrank.serving.batch.manifest import (
    check_manifest,
    hash_model,
    locked_manifest,
    manifest_path,
    write_manifest,
)
from splitrank.serving.batch.result_file import ResultWriter, keep_only, read_former_results


def result(custom_id: str, error: object = None) -> bytes:
    return json.dumps({"id": f"id-{custom_id}", "custom_id": custom_id, "response": {}, "error": error}).encode()


def test_no_file_and_empty_file_hold_nothing(tmp_path: Path) -> None:
    assert read_former_results(tmp_path / "out").finished == {}
    (tmp_path / "out").touch()
    former = read_former_results(tmp_path / "out")
    assert (former.finished, former.kept, former.num_failed, former.torn) == ({}, [], 0, False)


@pytest.mark.parametrize("cut", [1, 5, 30])
def test_a_torn_last_line_and_failures_are_not_finished(tmp_path: Path, cut: int) -> None:
    path = tmp_path / "out"
    path.write_bytes(b"\n".join([result("a"), result("b", {"code": "x"}), result("c")])[:-cut])
    former = read_former_results(path)
    assert former.finished == {"a": "id-a"}
    assert (former.kept, former.num_failed, former.torn) == ([result("a")], 1, True)


def test_a_whole_last_line_without_its_newline_is_torn(tmp_path: Path) -> None:
    (tmp_path / "out").write_bytes(result("a") + b"\n" + result("b"))
    former = read_former_results(tmp_path / "out")
    assert (former.finished, former.torn) == ({"a": "id-a"}, True)


@pytest.mark.parametrize("line", [b"", b"{}", b"[1]", b"\xff", b'{"id": 1, "custom_id": "x"}'])
def test_other_lines_are_refused_by_number(tmp_path: Path, line: bytes) -> None:
    (tmp_path / "out").write_bytes(result("a") + b"\n" + line + b"\n" + result("b") + b"\n")
    with pytest.raises(ValueError, match="out:2: not a result line"):
        read_former_results(tmp_path / "out")


def test_an_answer_twice_is_refused(tmp_path: Path) -> None:
    (tmp_path / "out").write_bytes((result("a") + b"\n") * 2)
    with pytest.raises(ValueError, match="out:2: custom_id 'a' stands here twice"):
        read_former_results(tmp_path / "out")


def test_keep_only_replaces_the_content(tmp_path: Path) -> None:
    (tmp_path / "out").write_bytes(b"old")
    keep_only(tmp_path / "out", [b"a", b"b"])
    assert (tmp_path / "out").read_bytes() == b"a\nb\n"
    assert os.listdir(tmp_path) == ["out"]
    (tmp_path / "link").symlink_to("out")
    keep_only(tmp_path / "link", [b"c"])
    assert (tmp_path / "link").is_symlink()
    assert (tmp_path / "out").read_bytes() == b"c\n"


def test_the_writer_has_every_line_on_disk_when_it_ends(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "out").write_bytes(b"before\n")
    synced: list[bytes] = []
    monkeypatch.setattr(os, "fsync", lambda _: synced.append((tmp_path / "out").read_bytes()))

    async def main() -> None:
        async with ResultWriter(tmp_path / "out") as writer:
            for index in range(100):
                writer.add(b"%d" % index)
                if index % 10 == 0:
                    await asyncio.sleep(0)

    asyncio.run(main())
    expected = b"before\n" + b"".join(b"%d\n" % index for index in range(100))
    assert (tmp_path / "out").read_bytes() == expected
    assert synced[-1] == expected
    assert len(synced) < 20  # lines share flushes
    assert all(content.endswith(b"\n") for content in synced)


def test_a_full_disk_is_raised_to_whoever_adds_next(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(_: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)

    refused = False

    async def main() -> None:
        nonlocal refused
        async with ResultWriter(tmp_path / "out") as writer:
            for _ in range(5000):
                try:
                    writer.add(b"line")
                except OSError:
                    refused = True
                    raise
                await asyncio.sleep(0.001)

    with pytest.raises(OSError, match="No space left"):
        asyncio.run(main())
    assert refused


def test_a_manifest_of_another_run_is_refused_with_the_difference(tmp_path: Path) -> None:
    output = tmp_path / "out"
    output.write_bytes(result("a") + b"\n")
    with locked_manifest(output) as file:
        write_manifest(file, {"tp": 1, "dtype": "bfloat16"})
    check_manifest(output, {"tp": 1, "dtype": "bfloat16"})
    with pytest.raises(ValueError, match="written with tp = 1, but now it is 2"):
        check_manifest(output, {"tp": 2, "dtype": "bfloat16"})
    with pytest.raises(ValueError, match="written with dtype = bfloat16, but now it is None"):
        check_manifest(output, {"tp": 1})
    with pytest.raises(ValueError, match="written with seed = None, but now it is 0"):
        check_manifest(output, {"tp": 1, "dtype": "bfloat16", "seed": 0})
    output.write_bytes(b"")
    check_manifest(output, {"tp": 2})


@pytest.mark.parametrize("content", [None, b"", b"{", b"[]", b"\xff"])
def test_content_without_a_readable_manifest_is_refused(tmp_path: Path, content: bytes | None) -> None:
    output = tmp_path / "out"
    output.write_bytes(result("a") + b"\n")
    if content is not None:
        manifest_path(output).write_bytes(content)
    with pytest.raises(ValueError, match="--overwrite"):
        check_manifest(output, {"tp": 1})


def test_two_runs_cannot_hold_one_output(tmp_path: Path) -> None:
    with locked_manifest(tmp_path / "out"):
        with pytest.raises(ValueError, match="another run"), locked_manifest(tmp_path / "out"):
            pass
        with locked_manifest(tmp_path / "other"):
            pass
    with locked_manifest(tmp_path / "out"):
        pass


def test_the_model_hash_sees_content_names_and_every_part_of_a_large_file(tmp_path: Path) -> None:
    weights = bytearray(3 * 2**20)
    (tmp_path / "config.json").write_text("{}")
    (tmp_path / "model.safetensors").write_bytes(weights)
    hashes = {hash_model(tmp_path)}
    assert hash_model(tmp_path) in hashes
    for start in (0, 2**20, len(weights) - 2**18):
        changed = weights.copy()
        changed[start : start + 2**18] = b"x" * 2**18
        (tmp_path / "model.safetensors").write_bytes(changed)
        hashes.add(hash_model(tmp_path))
    (tmp_path / "config.json").write_text('{"a": 1}')
    hashes.add(hash_model(tmp_path))
    (tmp_path / "config.json").rename(tmp_path / "tokenizer.json")
    hashes.add(hash_model(tmp_path))
    assert len(hashes) == 6
    (tmp_path / "README.md").write_text("not part of the model")
    assert hash_model(tmp_path) in hashes
