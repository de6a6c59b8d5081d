"""Plays faults against real servers: processes that die, clients that misbehave, resources that run out.

    scripts/fault_matrix [--only WORD ...] [--cycles 10] [--results FILE.jsonl] [--table FILE.md] [--list]

A case passes if nothing hangs, every open client gets an error or a whole answer, and nothing is left afterwards: no
process, port, shared memory or run folder. One line a case on stderr while it runs, JSON lines in ``--results``, a
table at the end. Exit code 1 if a case fails.
"""

import argparse
import itertools
import json
import sys
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path

import batch_kills
import cycles
import deaths
import door
import hosts
import interruptions
import resources
from case import Case, CaseFailed, CaseSkipped
from scene import END_S, Scene

DEFAULT_CYCLES = 10


@dataclass(frozen=True)
class Played:
    """The result of a case; ``times`` are seconds."""

    group: str
    name: str
    outcome: str  # ok, FAILED or skipped
    note: str
    seconds: float
    times: dict[str, float] = field(default_factory=dict)


def main() -> int:
    parser = argparse.ArgumentParser(
        prog="fault_matrix", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--only", nargs="+", default=[], metavar="WORD", help="cases whose names hold one of the words")
    parser.add_argument("--cycles", type=int, default=DEFAULT_CYCLES, help="kills and restarts of one server")
    parser.add_argument("--results", type=Path, help="JSON lines, one a case")
    parser.add_argument("--table", type=Path, help="where to write the table too")
    parser.add_argument("--list", action="store_true", help="only show the names")
    args = parser.parse_args()
    chosen = [case for case in all_cases(args.cycles) if _is_chosen(case, args.only)]
    if not chosen:
        parser.error(f"no case is called {' or '.join(args.only)}")
    if args.list:
        print("\n".join(case.full_name for case in chosen))
        return 0
    played = [_play_and_tell(case, args.results) for case in chosen]
    text = table(played)
    print(text)
    if args.table:
        args.table.write_text(text + "\n")
    return int(any(one.outcome == "FAILED" for one in played))


def all_cases(num_cycles: int) -> list[Case]:
    plays = (deaths.cases(), interruptions.cases(), door.cases(), resources.cases(), batch_kills.cases(), hosts.cases())
    return [*itertools.chain(*plays, cycles.cases(num_cycles))]


def _is_chosen(case: Case, words: Sequence[str]) -> bool:
    return not words or any(word in case.full_name for word in words)


def _play_and_tell(case: Case, results: Path | None) -> Played:
    played = play(case)
    print(f"{played.outcome:7} {played.seconds:6.1f} s  {case.full_name}: {played.note}", file=sys.stderr, flush=True)
    if results:
        with open(results, "a") as file:
            file.write(json.dumps(asdict(played)) + "\n")
    return played


def play(case: Case, end_s: float = END_S) -> Played:
    """Plays the case in a scene of its own, and looks for what it has left after ``end_s``."""
    began = time.monotonic()
    with Scene() as scene:
        try:
            note, outcome = case.play(scene), "ok"
            scene.check_nothing_left(end_s)
        except CaseFailed as error:
            note, outcome = str(error), "FAILED"
        except CaseSkipped as error:
            note, outcome = str(error), "skipped"
        except Exception as error:
            note, outcome = f"{type(error).__name__}: {error}", "FAILED"
        times = {name: round(seconds, 2) for name, seconds in scene.times.items()}
    return Played(case.group, case.name, outcome, note, round(time.monotonic() - began, 1), times)


def table(played: Sequence[Played]) -> str:
    """Markdown, with a line of sums below."""
    rows = ["| fault | case | outcome | clients told after | exit after | what was seen |", "|---|---|---|---|---|---|"]
    for one in played:
        told, ended = (_seconds(one.times.get(name)) for name in ("told_s", "exit_s"))
        rows.append(f"| {one.group} | {one.name} | {one.outcome} | {told} | {ended} | {one.note} |")
    counts = {name: sum(one.outcome == name for one in played) for name in ("ok", "FAILED", "skipped")}
    sums = ", ".join(f"{number} {name}" for name, number in counts.items())
    return "\n".join([*rows, "", f"{len(played)} cases: {sums}; {sum(one.seconds for one in played):.0f} s"])


def _seconds(value: float | None) -> str:
    return "" if value is None else f"{value:.1f} s"


if __name__ == "__main__":
    sys.exit(main())
