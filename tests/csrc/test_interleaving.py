"""Random, seeded schedules over the shipped templates: the protocol holds, and what it replaced does not."""

import shutil
from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path

import pytest

from tests.csrc.interleaving.choice import patches_of
from tests.csrc.interleaving.mutations import MUTATIONS, Mutation
from tests.csrc.programs import FOLDER, PROOF, Patch, build, compile_one, mutated_headers, run

pytestmark = PROOF
SOURCES = FOLDER / "interleaving"
PARTS = (
    "check",
    "kernels",
    "kernels_2",
    "kernels_3",
    "kernels_4",
    "kernels_8",
    "main",
    "plan",
    "plans",
    "scheduler",
    "world",
)
WORLD_SIZES = (2, 3, 4, 8)
OPTIMISED = "-O1"  # builds twice as fast as -O2, and runs nearly as fast
HARDLY_OPTIMISED = "-Og"  # builds twice as fast again: for few schedules, and for mutations, which are seen at once
MOST_SCHEDULES = "60000"  # of a mutation; all but a few are seen within a hundred
ENOUGH = 5  # schedules that do the harm which is expected


def headers_for_fibres(target: Path, patches: Sequence[Patch] = ()) -> Path:
    """The shipped headers, but the GPU's kernels find fibres where they look for a device."""
    headers = mutated_headers(target, patches)
    shutil.copy(SOURCES / "executor_stub.h", headers / "quick_reduce" / "gpu" / "executor.h")
    return headers


@pytest.fixture(scope="session")
def num_schedules(full: bool) -> int:
    return 12_000 if full else 4_000


@pytest.fixture(scope="session")
def program(tmp_path_factory: pytest.TempPathFactory, full: bool) -> Path:
    sources = [SOURCES / f"{part}.cc" for part in PARTS]
    folder = tmp_path_factory.mktemp("interleaving")
    flags = (OPTIMISED, "-DWHOLE_TABLE") if full else (HARDLY_OPTIMISED,)
    return build(sources, folder / "interleaving", *flags, headers=headers_for_fibres(folder / "headers"))


@pytest.fixture(scope="session")
def scheduler(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The part that no mutation changes."""
    target = tmp_path_factory.mktemp("scheduler") / "scheduler.o"
    return compile_one(SOURCES / "scheduler.cc", target, OPTIMISED)


def test_no_schedule_breaks_the_protocol(program: Path, num_schedules: int) -> None:
    done = run(program, "--schedules", str(num_schedules))
    assert done.returncode == 0, done.stderr
    report = done.json()
    assert report["schedules"] == num_schedules
    assert report["failed_calls"] == 0
    assert all(report["by_world_size"][size] > num_schedules // 6 for size in WORLD_SIZES)


def test_places_are_disjoint_and_messages_cut_without_a_gap(program: Path) -> None:
    assert run(program, "--plans").json() == {"violations": 0, "first": ""}


def test_no_fault_hangs_or_gives_a_wrong_sum(program: Path, num_schedules: int) -> None:
    done = run(program, "--faults", "--schedules", str(num_schedules))
    assert done.returncode == 0, done.stderr
    report = done.json()
    assert report["schedules"] == num_schedules
    assert all(count > num_schedules // 40 for count in report["by_fault"][1:]), "some fault was hardly tried"
    assert all(count > num_schedules // 120 for count in report["by_failure"][1:]), "some failure was hardly seen"


@pytest.mark.parametrize("world_size", WORLD_SIZES)
@pytest.mark.parametrize(
    ("protocol", "harm"),
    [
        ("historical-equal", "hangs"),
        ("historical-equal", "wrong_sums"),
        ("historical-at-least", "wrong_sums"),
        ("historical-addresses", "false_failures"),
    ],
)
def test_the_historical_layout_fails(program: Path, protocol: str, harm: str, world_size: int) -> None:
    """Also for two ranks: there the victim must stand still between two of its own polls."""
    until = ("--" + harm.replace("_", "-"), str(ENOUGH))
    done = run(program, "--protocol", protocol, "--world-size", str(world_size), "--schedules", "1000", *until)
    assert done.returncode == 1
    assert done.json()[harm] >= ENOUGH


@pytest.mark.parametrize("protocol", ["historical-equal", "historical-at-least", "historical-addresses"])
def test_the_historical_layout_fails_only_when_sizes_change(program: Path, protocol: str) -> None:
    """So the model of it is fair, and nothing but the layout is to blame."""
    done = run(program, "--protocol", protocol, "--equal-sizes", "--schedules", "1000")
    assert done.returncode == 0, done.stderr


def test_a_seed_replays_its_schedule(program: Path) -> None:
    arguments = ("--protocol", "historical-equal", "--world-size", "3")
    first = run(program, *arguments, "--seed", "7", "--schedules", "1000").json()
    again = run(program, *arguments, "--seed", str(first["first_seed"]), "--schedules", "1").json()
    assert again["violations"] == 1
    assert again["first"] == first["first"]


def test_an_unknown_argument_is_refused(program: Path) -> None:
    done = run(program, "--schedule", "1")
    assert done.returncode == 2
    assert "--schedule" in done.stderr


Group = tuple[Mutation, ...]


@pytest.fixture(scope="session")
def builder(scheduler: Path, tmp_path_factory: pytest.TempPathFactory, full: bool) -> Iterator["Builder"]:
    groups = [(mutation,) for mutation in MUTATIONS] if full else [MUTATIONS]
    builder = Builder(scheduler, tmp_path_factory.mktemp("mutations"), groups)
    yield builder
    builder.pool.shutdown(cancel_futures=True)


class Builder:
    """Builds the program that holds a mutation, and the next one beside it."""

    def __init__(self, scheduler: Path, folder: Path, groups: Sequence[Group]) -> None:
        self.scheduler, self.folder, self.groups = scheduler, folder, groups
        self.pool = ThreadPoolExecutor(2)
        self.builds: dict[Group, Future[Path]] = {}

    def program(self, group: Group) -> Path:
        self.start(group)
        if group in self.groups[:-1]:
            self.start(self.groups[self.groups.index(group) + 1])
        return self.builds[group].result()

    def start(self, group: Group) -> None:
        if group not in self.builds:
            self.builds[group] = self.pool.submit(self.compile, group)

    def compile(self, group: Group) -> Path:
        folder = self.folder / (group[0].name if group else "none")
        headers = headers_for_fibres(folder / "headers", patches_of(group))
        # Unused things and the like are a mutation's business.
        flags = (HARDLY_OPTIMISED, "-DSMALL_TABLE", "-w", "-include", str(SOURCES / "choice.h"))
        program = build([SOURCES / "mutated.cc", self.scheduler], folder / "mutated", *flags, headers=headers)
        shutil.rmtree(headers)
        return program


@pytest.mark.parametrize("mutation", MUTATIONS, ids=lambda mutation: f"{mutation.invariant}-{mutation.name}")
def test_a_broken_invariant_is_seen(builder: Builder, mutation: Mutation) -> None:
    (group,) = (group for group in builder.groups if mutation in group)
    chosen = ("--mutation", str(1 + group.index(mutation)))
    done = run(builder.program(group), *mutation.arguments, *chosen, "--schedules", MOST_SCHEDULES)
    assert done.returncode == 1, f"{mutation.name} went unseen: {done.stdout}"
    assert done.json()["violations"] == 1


def test_the_small_table_without_a_mutation_is_fine(builder: Builder, full: bool) -> None:
    """Also of programs that hold mutations, as long as none is on."""
    for group in [group for group in builder.groups if len(group) > 1] or [()]:
        for arguments in ((), ("--faults",), ("--fault", "overlap"), ("--fault", "impatience"), ("--plans",)):
            done = run(builder.program(group), *arguments, "--schedules", "5000" if full else "1500")
            assert done.returncode == 0, done.stderr
