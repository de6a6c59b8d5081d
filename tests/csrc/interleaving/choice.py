"""Many mutations in one program, which is told which one is on: a build takes seconds, to see a mutation none."""

from collections.abc import Sequence

from tests.csrc.interleaving.mutations import Mutation
from tests.csrc.programs import CSRC, Patch

Group = tuple[Mutation, ...]


def grouped(mutations: Sequence[Mutation]) -> list[Group]:
    """One program a group: no two of a group change the same place."""
    groups: list[list[Mutation]] = []
    for mutation in mutations:
        open_groups = [] if mutation.alone else [group for group in groups if not group[0].alone]
        group = next((group for group in open_groups if not any(_overlap(mutation, other) for other in group)), None)
        if group is None:
            groups.append([mutation])
        else:
            group.append(mutation)
    return [tuple(group) for group in groups]


def patches_of(group: Group) -> list[Patch]:
    """In force while ``mutation`` (choice.h) is the number of theirs, from 1; the patches of one alone always are."""
    if len(group) == 1:
        return list(group[0].patches)
    return [_chosen(number, patch) for number, mutation in enumerate(group, 1) for patch in mutation.patches]


def _chosen(number: int, patch: Patch) -> Patch:
    if patch.old.rstrip().endswith(";"):
        return Patch(patch.file, patch.old, f"if (::mutation == {number}) {{ {patch.new} }} else {{ {patch.old} }}")
    return Patch(patch.file, patch.old, f"(::mutation == {number} ? ({patch.new}) : ({patch.old}))")


def _overlap(one: Mutation, other: Mutation) -> bool:
    return any(
        mine.file == theirs.file and _begin(mine) < _end(theirs) and _begin(theirs) < _end(mine)
        for mine in one.patches
        for theirs in other.patches
    )


def _begin(patch: Patch) -> int:
    return (CSRC / "quick_reduce" / patch.file).read_text(encoding="utf-8").index(patch.old)


def _end(patch: Patch) -> int:
    return _begin(patch) + len(patch.old)
