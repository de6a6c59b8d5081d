"""Flags, TOML keys and help of a command, generated from its config dataclass (``config.py``).

A flag beats the TOML file (``--config``), which beats the default. The dataclass checks the values; here only types.
"""

import argparse
import dataclasses
import difflib
import sys
import tomllib
import typing
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any, NoReturn, TypeVar

Config = TypeVar("Config")
INT_TUPLE = tuple[int, ...]  # 20,20 as a flag, [20, 20] in TOML
STR_TUPLE = tuple[str, ...]  # several words as a flag, ["a", "b"] in TOML
METAVARS = {str: "TEXT", int: "N", float: "X", INT_TUPLE: "N,N", STR_TUPLE: "TEXT"}  # every type an option may have


class OneLineParser(argparse.ArgumentParser):
    """Says what is wrong in one line and exits with 2; argparse prints a screen of usage before it."""

    def error(self, message: str) -> NoReturn:
        print(f"{self.prog}: error: {message}", file=sys.stderr)
        raise SystemExit(2)


def load_config(config_class: type[Config], argv: Sequence[str], prog: str, description: str = "") -> Config:
    """The config that ``argv`` and the TOML file it may name describe. A mistake ends the process with code 2."""
    parser = make_parser(config_class, prog, description)
    arguments, unknown = parser.parse_known_args(argv)
    if unknown:
        parser.error(_unknown_argument(parser, unknown[0]))
    values = vars(arguments)
    try:
        file = values.pop("config", None)
        from_file = {} if file is None else read_toml(config_class, Path(file))
        return config_class(**(from_file | values))
    except (ValueError, OSError) as error:
        parser.error(str(error))


def make_parser(config_class: type[Any], prog: str, description: str) -> OneLineParser:
    """A parser whose result holds only the flags that were given."""
    parser = OneLineParser(
        prog=prog,
        usage=f"{prog} [options]",
        description=description,
        allow_abbrev=False,
        argument_default=argparse.SUPPRESS,
    )
    parser.add_argument("--config", metavar="FILE", help="TOML file with these options (underscores); flags beat it")
    types = typing.get_type_hints(config_class)
    for field in dataclasses.fields(config_class):
        names = (field.name, *field.metadata.get("aliases", ()))
        flags = ["--" + name.replace("_", "-") for name in names]
        parser.add_argument(*flags, dest=field.name, help=_help_text(field), **_flag_settings(field, types[field.name]))
    return parser


def _flag_settings(field: dataclasses.Field[Any], kind: Any) -> dict[str, Any]:
    """argparse's settings for a field of this type."""
    if kind is bool:
        return {"action": argparse.BooleanOptionalAction}
    metavar = None if "choices" in field.metadata else field.metadata.get("metavar", METAVARS[kind])
    named = {"metavar": metavar, "choices": field.metadata.get("choices")}
    if kind == STR_TUPLE:
        return {**named, "nargs": "+", "action": _StoreTuple}
    if kind == INT_TUPLE:
        return {**named, "type": _parse_int_tuple}
    return {**named, "type": kind}


class _StoreTuple(argparse.Action):
    def __call__(self, parser: Any, namespace: Any, values: Any, option_string: str | None = None) -> None:
        setattr(namespace, self.dest, tuple(values))


def _parse_int_tuple(text: str) -> tuple[int, ...]:
    try:
        return tuple(int(part) for part in text.split(","))
    except ValueError:
        raise argparse.ArgumentTypeError(f"{text!r} is not a list of integers like 20,20") from None


def _help_text(field: dataclasses.Field[Any]) -> str:
    text, default = str(field.metadata["help"]).replace("%", "%%"), field.default
    if default in ("", ()):
        return text  # the help line says what nothing means
    if isinstance(default, tuple):
        # as it is typed: integers in one word, strings in several
        default = (" " if isinstance(default[0], str) else ",").join(map(str, default))
    return f"{text} (default: {default})"


def _unknown_argument(parser: argparse.ArgumentParser, argument: str) -> str:
    flag = argument.split("=")[0]
    known = [option for action in parser._actions for option in action.option_strings]
    return f"unknown argument {flag}{_nearest(flag, known)}"


def _nearest(name: str, known: Iterable[str]) -> str:
    matches = difflib.get_close_matches(name, known, n=1)
    return f"; did you mean {matches[0]}?" if matches else ""


def read_toml(config_class: type[Any], file: Path) -> dict[str, Any]:
    """Values of a TOML file by field name. ValueError names file and key; OSError if it cannot be read."""
    try:
        table = tomllib.loads(file.read_text(encoding="utf-8"))
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise ValueError(f"{file}: not valid TOML: {error}") from None
    types = typing.get_type_hints(config_class)
    known = {field.name: types[field.name] for field in dataclasses.fields(config_class)}
    for key in table:
        if key not in known:
            raise ValueError(f"{file}: unknown key {key!r}{_nearest(key, known)}")
    return {key: _checked_toml_value(file, key, value, known[key]) for key, value in table.items()}


def _checked_toml_value(file: Path, key: str, value: Any, kind: Any) -> Any:
    if kind in (INT_TUPLE, STR_TUPLE):
        item = int if kind == INT_TUPLE else str
        if isinstance(value, list) and all(type(entry) is item for entry in value):
            return tuple(value)
        raise ValueError(f"{file}: {key} must be a list of {item.__name__}, not {value!r}")
    if kind is float and type(value) is int:
        return float(value)
    if type(value) is not kind:  # exact: a TOML true is not the integer 1
        raise ValueError(f"{file}: {key} must be of type {kind.__name__}, not {value!r}")
    return value
