"""A value's JSON type is the schema's; what does not fit it is not lost."""

import json
from typing import Any

import pytest

from splitrank.serving.text.argument_types import argument_json, parameter_types

SCHEMA: dict[str, Any] = {
    "type": "object",
    "properties": {
        "text": {"type": "string"},
        "choice": {"enum": ["a", "b"]},
        "mixed": {"enum": ["a", 1, None]},
        "fixed": {"const": 3},
        "several": {"type": ["integer", "null"]},
        "optional": {"anyOf": [{"type": "string"}, {"type": "null"}]},
        "either": {"oneOf": [{"$ref": "#/$defs/Place"}, {"type": "boolean"}]},
        "place": {"$ref": "#/$defs/Place"},
        "both": {"allOf": [{"description": "x"}, {"type": "number"}]},
        "list": {"items": {"type": "string"}},
        "open": {},
        "half_open": {"anyOf": [{"type": "string"}, {}]},
        "loop": {"$ref": "#/$defs/Loop"},
        "nowhere": {"$ref": "#/$defs/None/at/all"},
        "odd": True,
    },
    "$defs": {"Place": {"properties": {"x": {}}}, "Loop": {"$ref": "#/$defs/Loop"}},
}


def test_types_of_a_schema() -> None:
    assert parameter_types(SCHEMA) == {
        "text": ("string",),
        "choice": ("string",),
        "mixed": ("string", "integer", "null"),
        "fixed": ("integer",),
        "several": ("integer", "null"),
        "optional": ("string", "null"),
        "either": ("boolean", "object"),
        "place": ("object",),
        "both": ("number",),
        "list": ("array",),
        "open": (),
        "half_open": (),
        "loop": (),
        "nowhere": (),
        "odd": (),
    }
    for schema in ({}, {"properties": []}, {"type": "object"}):
        assert parameter_types(schema) == {}


@pytest.mark.parametrize(
    ("text", "types", "value"),
    [
        ("5", ("integer",), "5"),
        (" 5\n", ("integer",), "5"),
        ("5.0", ("integer",), "5"),
        ("5.5", ("integer",), "5.5"),
        ("five", ("integer",), '"five"'),
        ('"5"', ("integer",), '"5"'),
        ("12345678901234567890.10", ("number",), "12345678901234567890.10"),
        ("7", ("number",), "7"),
        ("NaN", ("number",), '"NaN"'),
        ("1e999", ("number",), '"1e999"'),
        ("true", ("boolean",), "true"),
        ("True", ("boolean",), "true"),
        ("null", ("integer", "null"), "null"),
        ("None", ("string", "null"), "null"),
        ("null", ("string", "null"), "null"),
        ("nullable", ("string", "null"), '"nullable"'),
        ("5", ("string", "null"), '"5"'),
        ("5", ("string", "integer"), "5"),
        ('"a"', ("string", "null"), '"\\"a\\""'),
        ('{"a": [1, {"b": null}]}', ("object",), '{"a": [1, {"b": null}]}'),
        ('{\n  "a": 1\n}', ("object",), '{\n  "a": 1\n}'),
        ("{'a': 1}", ("object",), "\"{'a': 1}\""),
        ('{"a": 1, "a": 2}', ("object",), json.dumps('{"a": 1, "a": 2}')),
        ("[1]", ("object",), "[1]"),
        ("[1, 2]", ("array",), "[1, 2]"),
        ("5", (), "5"),
        ("a b", (), '"a b"'),
        ('"a b"', (), '"a b"'),
        ("", (), '""'),
        ("", ("integer",), '""'),
        ("[" * 5000, ("array",), json.dumps("[" * 5000)),
    ],
)
def test_values(text: str, types: tuple[str, ...], value: str) -> None:
    assert argument_json(text, types) == value
    json.loads(value)


def test_many_alternatives_that_refer_to_others_are_read_once() -> None:
    """400 alternatives at each of four levels: one by one, hours of work for a body of 40 KB."""
    definitions: dict[str, Any] = {
        f"d{level}": {"anyOf": [{"$ref": f"#/$defs/d{level + 1}"}] * 400} for level in range(4)
    }
    schema = {"$defs": definitions | {"d4": {"type": "integer"}}, "properties": {"x": {"$ref": "#/$defs/d0"}}}
    assert parameter_types(schema) == {"x": ()}  # a level deeper than is read
    schema["properties"] = {"x": {"$ref": "#/$defs/d1"}}
    assert parameter_types(schema) == {"x": ("integer",)}
