"""Starts the stages of ``device_link_rank``, and says what each scenario must give, on a CPU and on GPUs alike."""

import json
from pathlib import Path
from typing import Any

from tests.support.comm_rank import HASH, MISMATCHES, OTHER_HASH
from tests.support.device_link_rank import TIMEOUT_S
from tests.support.forked import ForkedProcess, finish_all
from tests.support.limits import SLACK_S, scaled


def run(scenario: str, folder: Path, num_stages: int, devices: tuple[str, ...] = (), kind: str = "device") -> list[Any]:
    """What each stage printed; None for one that left without a word."""
    module = "tests.support.device_link_rank"
    ranks = [ForkedProcess(module, scenario, folder, rank, kind, *devices) for rank in range(num_stages)]
    return [json.loads(text) if text else None for text in finish_all(ranks)]


def check_mismatches(seen: list[str]) -> None:
    sent = {
        "step": f"(7, '{HASH}', 2, 128, 'float32')",
        "hash": f"(5, '{OTHER_HASH}', 2, 128, 'float32')",
        "dtype, as many bytes": f"(5, '{HASH}', 2, 128, 'bfloat16')",
        "tensors, as many bytes": f"(5, '{HASH}', 1, 256, 'float32')",
        "longer": f"(5, '{HASH}', 2, 160, 'float32')",
        "shorter": f"(5, '{HASH}', 2, 96, 'float32')",
    }
    _check_errors(seen, "bytes a tensor", 128, sent)
    in_time(seen)


def check_mismatched_headers(seen: list[str]) -> None:
    """The same of links that send a header (``comm/message_header.py``), which counts elements."""
    sent = {
        "step": f"(7, '{HASH}', 2, 32, 'float32')",
        "hash": f"(5, '{OTHER_HASH}', 2, 32, 'float32')",
        "dtype, as many bytes": f"(5, '{HASH}', 2, 64, 'bfloat16')",
        "tensors, as many bytes": f"(5, '{HASH}', 1, 64, 'float32')",
        "longer": f"(5, '{HASH}', 2, 40, 'float32')",
        "shorter": f"(5, '{HASH}', 2, 24, 'float32')",
    }
    _check_errors(seen, "elements", 32, sent)


def _check_errors(seen: list[str], counted: str, size: int, sent: dict[str, str]) -> None:
    """``seen``: the error of each of ``MISMATCHES`` behind its time. ``sent``: what the error says was sent."""
    errors = dict(zip(MISMATCHES, seen[1::2], strict=True))
    assert errors.pop("none") == ""
    expected = (
        f"stage 1 expected (5, '{HASH}', 2, {size}, 'float32') (step, hash, tensors, {counted}, dtype) "
        "from stage 0, which sent "
    )
    assert errors == {name: expected + message for name, message in sent.items()}


def check_silent(seen: list[list[str]]) -> None:
    own = "stage 1 waited for stage 0 to send message 1, step 7: nothing came within 3 s (the last that was seen is 0)"
    assert seen[1][1::2] == [own, own]
    assert float(seen[1][2]) < TIMEOUT_S  # it does not wait again
    assert seen[0][1] == "stage 0, step 7: stage 1 gave up on the device link"
    assert float(seen[0][0]) < TIMEOUT_S
    in_time(seen[1])


def check_deaf(seen: list[str]) -> None:
    waited = "stage 0 waited for stage 1 to make room for message 4, step 3"
    assert seen[1] == f"{waited}: nothing came within 3 s (the last that was seen is 0)"
    in_time(seen)


def check_dead(seen: list[str]) -> None:
    assert seen[1].startswith("stage 1 waited for stage 0 to send message 1, step 0: nothing came within 3 s")
    in_time(seen)


def in_time(seen: list[str]) -> None:
    assert max(map(float, seen[::2])) < TIMEOUT_S + scaled(SLACK_S)
