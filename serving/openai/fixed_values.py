"""The values of a field that has a few fixed ones, for the error that a client gets about another value."""

import re
from collections.abc import Iterator
from functools import lru_cache

import msgspec
from msgspec import inspect

_type_info = lru_cache(maxsize=None)(inspect.type_info)  # bodies' types are few


def fixed_values(body_type: type[msgspec.Struct], path: str) -> list[str]:
    """Strings that may stand at ``path`` (``tools[0].type``) of a body: those of a ``Literal``, or the tags of structs.
    Empty if there is nothing fixed."""
    found = [_type_info(body_type)]
    for step in re.findall(r"[^.\[\]]+", path):
        found = [inner for kind in found for inner in _inside(kind, step)]
    values = [value for kind in found for value in _values(kind)]
    return list(dict.fromkeys(values))


def _inside(kind: inspect.Type, step: str) -> Iterator[inspect.Type]:
    """What a field or an index leads to, in each of a union's types that has it."""
    match kind:
        case inspect.Metadata():
            yield from _inside(kind.type, step)
        case inspect.UnionType():
            for one in kind.types:
                yield from _inside(one, step)
        case inspect.ListType():
            yield kind.item_type
        case inspect.StructType():
            if kind.tag_field == step:
                yield inspect.LiteralType((kind.tag,))
            yield from (field.type for field in kind.fields if field.encode_name == step)


def _values(kind: inspect.Type) -> Iterator[str]:
    match kind:
        case inspect.Metadata():
            yield from _values(kind.type)
        case inspect.UnionType():
            for one in kind.types:
                yield from _values(one)
        case inspect.LiteralType():
            yield from (value for value in kind.values if isinstance(value, str))
