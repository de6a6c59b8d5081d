"""Arguments of a tool call are text in the model's XML; their JSON types come from the tool's JSON schema."""

import json
import re
from typing import Any

from splitrank.serving.text.strict_json import StrictJSONError, parse_json

Types = tuple[str, ...]  # JSON schema's names of the types that a value may have; none: any
MAX_DEPTH = 8  # of references and alternatives inside one parameter's schema
_TYPE_NAMES = ("string", "integer", "number", "boolean", "null", "object", "array")
_OF_CLASS = {str: "string", bool: "boolean", int: "integer", float: "number", type(None): "null", dict: "object"}


def parameter_types(schema: dict[str, Any]) -> dict[str, Types]:
    """By name, of a tool's ``parameters``. What the schema leaves open, or says in a way not read here, may be any."""
    properties, reader = schema.get("properties"), _Reader(schema)
    return {name: reader.types(one) for name, one in properties.items()} if isinstance(properties, dict) else {}


def resolve(schema: Any, root: dict[str, Any]) -> Any:
    """What a schema that is a reference inside ``root`` refers to."""
    for _ in range(MAX_DEPTH):
        reference = schema.get("$ref") if isinstance(schema, dict) else None
        if not isinstance(reference, str):
            break
        schema = _resolve(reference, root)
    return schema


class _Reader:
    """Reads the schemas inside ``root``. Each reference is followed once at a depth: definitions of many alternatives
    that refer to each other would take time that grows as a power of their number."""

    def __init__(self, root: dict[str, Any]) -> None:
        self._root = root
        self._of_references: dict[tuple[str, int], Types] = {}

    def types(self, schema: Any, depth: int = 0) -> Types:
        if not isinstance(schema, dict) or depth > MAX_DEPTH:
            return ()
        if isinstance(reference := schema.get("$ref"), str):
            return self._of_reference(reference, depth + 1)
        if declared := schema.get("type"):
            return _known([declared] if isinstance(declared, str) else declared)
        values = [schema["const"]] if "const" in schema else schema.get("enum")
        if isinstance(values, list):
            return _known([_OF_CLASS.get(type(value), "array") for value in values])
        for name in ("anyOf", "oneOf"):
            if isinstance(options := schema.get(name), list):
                found = [self.types(option, depth + 1) for option in options]
                return _known([one for types in found for one in types]) if all(found) else ()
        if isinstance(parts := schema.get("allOf"), list):
            return next((types for part in parts if (types := self.types(part, depth + 1))), ())
        return ("object",) if "properties" in schema else ("array",) if "items" in schema else ()

    def _of_reference(self, reference: str, depth: int) -> Types:
        place = (reference, depth)
        if place not in self._of_references:
            self._of_references[place] = self.types(_resolve(reference, self._root), depth)
        return self._of_references[place]


def _resolve(reference: str, root: dict[str, Any]) -> Any:
    """``#/$defs/Place`` inside the tool's own schema."""
    found: Any = root
    for step in reference.removeprefix("#/").split("/"):
        found = found.get(step) if isinstance(found, dict) else None
    return found


def _known(names: Any) -> Types:
    return tuple(name for name in _TYPE_NAMES if isinstance(names, list) and name in names)


def is_text(types: Types) -> bool:
    """Whether a value can only be a string, so that it can be passed on before it has ended."""
    return types == ("string",)


def argument_json(text: str, types: Types) -> str:
    """JSON of a value that the model wrote as ``text``.

    A string is the text as it is. Anything else must read as JSON of one of ``types``; what does not is given as JSON
    if it is any, else as a string: whoever runs the tool checks its arguments.
    """
    value = text.strip()
    if "boolean" in types and value in ("True", "False"):  # as Python has them
        return value.lower()
    if "null" in types and value == "None":
        return "null"
    kind = _json_type(value)
    if kind == "integer" and "number" in types:
        kind = "number"
    is_string = kind is None or ("string" in types and (kind == "string" or kind not in types))
    if is_string:
        return json.dumps(text, ensure_ascii=False)
    whole = re.fullmatch(r"(-?\d+)\.0+", value) if types == ("integer",) else None
    return whole[1] if whole else value  # word for word, so that no digit of a number is lost


def _json_type(text: str) -> str | None:
    """The type of a JSON text; None if it is none."""
    try:
        value = parse_json(text, "the value")
    except StrictJSONError:
        return None
    return _OF_CLASS.get(type(value), "array")
