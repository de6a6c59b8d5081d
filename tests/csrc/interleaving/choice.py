"""Many mutations in one program, which is told which one is on: a build takes seconds, to see a mutation none."""

from collections.abc import Sequence
from dataclasses import replace

from tests.csrc.interleaving.mutations import Mutation
from tests.csrc.programs import Patch


def patches_of(mutations: Sequence[Mutation]) -> list[Patch]:
    """In force while ``mutation`` (choice.h) is the number of theirs, from 1; the patches of one alone always are."""
    if len(mutations) == 1:
        return list(mutations[0].patches)
    places: dict[Patch, list[tuple[int, str]]] = {}  # one place may have several mutations, but no two may overlap
    for number, mutation in enumerate(mutations, 1):
        for patch in mutation.patches:
            places.setdefault(replace(patch, new=""), []).append((number, patch.new))
    return [replace(place, new=_chosen(place.old, choices)) for place, choices in places.items()]


def _chosen(old: str, choices: Sequence[tuple[int, str]]) -> str:
    if old.rstrip().endswith(";"):
        cases = (f"if (::mutation == {number}) {{ {new} }} else " for number, new in choices)
        return f"{''.join(cases)}{{ {old} }}"
    cases = (f"::mutation == {number} ? ({new}) : " for number, new in choices)
    return f"({''.join(cases)}({old}))"
