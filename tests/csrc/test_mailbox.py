"""The stages' mailbox: random, seeded schedules over the shipped header hold, and each thing that it does is needed.

The fibres are those of the all-reduce (``interleaving/``): lanes, blocks and stages, with stores that linger. A ring of
two or three stages sends and receives some messages more than there are places, in programs like a step's.
"""

import shutil
from collections.abc import Sequence
from pathlib import Path

import pytest

from tests.csrc.interleaving.choice import patches_of
from tests.csrc.interleaving.mutations import Mutation, one
from tests.csrc.programs import CSRC, FOLDER, PROOF, Patch, build, patched, run

pytestmark = PROOF
SOURCES = [FOLDER / "mailbox" / "main.cc", FOLDER / "mailbox" / "ring.cc", FOLDER / "interleaving" / "scheduler.cc"]
PUBLISH = "exec_.store_flag(flag(view_.next, view_.next_layout, place), sequence);"
BEGIN_SEND = "if (!exec_.all(begin() && await_credit(sequence))) return false;"
BEGIN_RECEIVE = "if (!exec_.all(begin() && await_message(sequence, place))) return false;"
ACKNOWLEDGE = "exec_.store_flag(credit(view_.previous), sequence);"

MAILBOX, LAYOUT = "mailbox.h", "layout.h"
MUTATIONS = (
    # Nothing is overwritten before it was read.
    one("no-credit-wait", 2, MAILBOX, "sequence <= view_.next_layout.num_places()", "true"),
    one("credit-one-early", 2, MAILBOX, "seen >= needed", "seen + 1 >= needed"),
    one("credit-before-read", 2, MAILBOX, BEGIN_RECEIVE, f"{BEGIN_RECEIVE} if (exec_.lane() == 0) {ACKNOWLEDGE}"),
    one("wrong-place", 1, MAILBOX, "view_.next_layout.data(place, part)", "view_.next_layout.data(0, part)"),
    one("parts-share-a-place", 1, LAYOUT, "uint64_t(place) * kMaxParts + part", "uint64_t(place) * kMaxParts"),
    # All data of all blocks is performed before the flag.
    one("flag-before-data", 4, MAILBOX, BEGIN_SEND, f"{BEGIN_SEND} if (exec_.lane() == 0) {PUBLISH}"),
    one("no-release", 4, MAILBOX, "exec_.release_block();", "exec_.all(true);"),
    one("first-block-publishes", 4, MAILBOX, "message_.num_blocks - 1", "0"),
    # Numbers advance once a message.
    one("number-not-kept", 3, MAILBOX, "counter.sequence = sequence;", ";"),
    one("arrivals-not-reset", 3, MAILBOX, "counter.arrived = 0;", ";"),
    # Both sides mean the same message.
    one("hash-ignored", 6, MAILBOX, "found.plan_hash == wanted.plan_hash", "true", "--faults"),
    one("step-ignored", 6, MAILBOX, "found.step == wanted.step", "true", "--faults"),
    # Waits end, and one failure ends them all.
    one("limit-ignored", 7, MAILBOX, "now - began > message_.timeout_ns", "false", "--faults"),
    one("next-stage-not-told", 7, MAILBOX, "exec_.store_flag(abort_word(view_.next), word);", ";", "--faults"),
    one("stage-before-not-told", 7, MAILBOX, "exec_.store_flag(abort_word(view_.previous), word);", ";", "--faults"),
    one("host-ignored", 7, MAILBOX, "word != 0 || !asks_host", "true", "--faults"),
)


def mutated_headers(target: Path, patches: Sequence[Patch]) -> Path:
    for folder in ("quick_reduce", "stage_mailbox"):
        shutil.copytree(CSRC / folder, target / folder)
    for file in {patch.file for patch in patches}:
        path = target / "stage_mailbox" / file
        path.write_text(patched(path.read_text(encoding="utf-8"), [one for one in patches if one.file == file]))
    return target


def compiled(folder: Path, mutations: Sequence[Mutation]) -> Path:
    headers = mutated_headers(folder / "headers", patches_of(mutations) if mutations else [])
    flags = ("-Og", *(("-w", "-include", str(FOLDER / "interleaving" / "choice.h")) if mutations else ()))
    return build(SOURCES, folder / "mailbox", *flags, headers=headers)


@pytest.fixture(scope="module")
def program(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return compiled(tmp_path_factory.mktemp("mailbox"), ())


@pytest.fixture(scope="module")
def with_mutations(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return compiled(tmp_path_factory.mktemp("mutations"), MUTATIONS)


@pytest.fixture(scope="module")
def num_schedules(full: bool) -> int:
    return 20_000 if full else 6_000


def test_no_schedule_breaks_the_protocol(program: Path, num_schedules: int) -> None:
    done = run(program, "--schedules", str(num_schedules))
    assert done.returncode == 0, done.stderr
    assert (done.json()["schedules"], done.json()["failed"]) == (num_schedules, 0)


def test_no_fault_hangs_or_gives_wrong_data(program: Path, num_schedules: int) -> None:
    done = run(program, "--faults", "--schedules", str(num_schedules))
    assert done.returncode == 0, done.stderr
    report = done.json()
    assert min(report["by_fault"][1:]) > num_schedules // 7, "some fault was hardly tried"
    timeout, mismatch, aborted = (report["by_failure"][kind] for kind in (1, 2, 5))
    assert min(timeout, mismatch, aborted) > num_schedules // 7, "some failure was hardly seen"


@pytest.mark.parametrize("mutation", MUTATIONS, ids=lambda mutation: mutation.name)
def test_a_broken_rule_is_seen(mutation: Mutation, with_mutations: Path) -> None:
    number = str(1 + MUTATIONS.index(mutation))
    done = run(with_mutations, *mutation.arguments, "--mutation", number, "--schedules", "60000")
    assert done.returncode == 1, f"{mutation.name} went unseen: {done.stdout}"


def test_without_a_mutation_the_program_that_holds_them_is_fine(with_mutations: Path) -> None:
    for arguments in ((), ("--faults",)):
        done = run(with_mutations, *arguments, "--schedules", "3000")
        assert done.returncode == 0, done.stderr
