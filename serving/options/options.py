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

from splitrank.serving.options.checked import as_type
from splitrank.serving.options.config import is_secret
from splitrank.serving.options.groups import grouped

Config = TypeVar("Config")
INT_TUPLE = tuple[int, ...]  # 20,20 as a flag, [20, 20] in TOML
STR_TUPLE = tuple[str, ...]  # several words as a flag, ["a", "b"] in TOML
METAVARS = {str: "TEXT", int: "N", float: "X", INT_TUPLE: "N,N", STR_TUPLE: "TEXT"}  # every type an option may have


class OneLineParser(argparse.ArgumentParser):
    """Prints an error in one line and exits with 2; argparse would print a screen of usage first."""

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
        for name, value in values.items():
            refuse_empty(name, value)
        file = values.pop("config", None)
        from_file = {} if file is None else read_toml(config_class, Path(file))
        return config_class(**(from_file | values))
    except (ValueError, OSError) as error:
        parser.error(str(error))


def make_parser(config_class: type[Any], prog: str, description: str) -> OneLineParser:
    """A parser whose result has only the flags that were given."""
    fields = {field.name: field for field in dataclasses.fields(config_class)}
    required = [f" {_flags(field)[0]} {_metavar(field, str)}" for field in fields.values() if _is_required(field)]
    parser = OneLineParser(
        prog=prog,
        usage=f"{prog}{''.join(required)} [options]",
        description=description,
        allow_abbrev=False,
        argument_default=argparse.SUPPRESS,
    )
    parser.add_argument("--config", metavar="FILE", help="TOML file with these options (underscores); flags beat it")
    types = typing.get_type_hints(config_class)
    for title, names in grouped(list(fields)).items():
        group = parser.add_argument_group(title)
        for name in names:
            settings = _flag_settings(fields[name], types[name])
            group.add_argument(*_flags(fields[name]), dest=name, help=_help_text(fields[name]), **settings)
    return parser


def _flags(field: dataclasses.Field[Any]) -> list[str]:
    return ["--" + key.replace("_", "-") for key in _keys(field)]


def _is_required(field: dataclasses.Field[Any]) -> bool:
    return bool(field.metadata.get("required"))


def _metavar(field: dataclasses.Field[Any], kind: Any) -> str:
    return str(field.metadata.get("metavar", METAVARS[kind]))


def _flag_settings(field: dataclasses.Field[Any], kind: Any) -> dict[str, Any]:
    """argparse's settings for a field of this type."""
    if kind is bool:
        return {"action": argparse.BooleanOptionalAction}
    metavar = None if "choices" in field.metadata else _metavar(field, kind)
    named = {"metavar": metavar, "choices": field.metadata.get("choices")}
    if kind == STR_TUPLE:
        return {**named, "nargs": "+", "action": _StoreTuple}
    if kind == INT_TUPLE:
        return {**named, "type": _parse_int_tuple}
    return {**named, "type": kind}


class _StoreTuple(argparse.Action):
    def __call__(self, parser: Any, namespace: Any, values: Any, option_string: str | None = None) -> None:
        setattr(namespace, self.dest, (*getattr(namespace, self.dest, ()), *values))  # it may be given again


def _parse_int_tuple(text: str) -> tuple[int, ...]:
    try:
        return tuple(int(part) for part in text.split(","))
    except ValueError:
        raise argparse.ArgumentTypeError(f"{text!r} is not a list of integers like 20,20") from None


def _help_text(field: dataclasses.Field[Any]) -> str:
    if not field.metadata["help"]:
        return argparse.SUPPRESS
    text, default = str(field.metadata["help"]).replace("%", "%%"), field.default
    if default in ("", ()):
        return text  # the help text says what an empty value means
    if isinstance(default, tuple):
        # As a user types it: integers in one word, strings in several.
        default = (" " if isinstance(default[0], str) else ",").join(map(str, default))
    return f"{text} (default: {default})"


def _unknown_argument(parser: argparse.ArgumentParser, argument: str) -> str:
    if not argument.startswith("-"):  # vLLM's users give the model so
        has_model = any(action.dest == "model" for action in parser._actions)
        return f"unknown argument {argument}" + (f"; the model is --model {argument}" if has_model else "")
    flag = argument.split("=")[0]
    known = [option for action in parser._actions for option in action.option_strings]
    return f"unknown argument {flag}{_nearest(flag, known)}"


def _nearest(name: str, known: Iterable[str]) -> str:
    matches = difflib.get_close_matches(name, known, n=1, cutoff=0.7)
    return f"; did you mean {matches[0]}?" if matches else ""


def refuse_empty(name: str, value: Any) -> None:
    """``--model "$MODEL"`` with the variable unset must not serve the demo, nor ``--api-key ""`` serve everybody."""
    if value == "" or (isinstance(value, tuple | list) and "" in value):
        raise ValueError(f"{name} is empty, as from an unset variable: give a value or leave it out")


def read_toml(config_class: type[Any], file: Path) -> dict[str, Any]:
    """Values of a TOML file by field name. ValueError names file and key, or why the file cannot be read."""
    try:
        table = tomllib.loads(file.read_text(encoding="utf-8-sig"))
    except OSError as error:
        raise ValueError(f"config {file} cannot be read: {error.strerror}") from None
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise ValueError(f"{file}: not valid TOML: {error}") from None
    types = typing.get_type_hints(config_class)
    known = {key: field.name for field in dataclasses.fields(config_class) for key in _keys(field)}
    secrets = {field.name for field in dataclasses.fields(config_class) if is_secret(field)}
    values: dict[str, Any] = {}
    try:
        for key, value in table.items():
            if key not in known and isinstance(value, dict):
                raise ValueError(f"[{key}] is a table; options stand without one")
            if key not in known:
                raise ValueError(f"unknown key {key!r}{_nearest(key, known)}")
            name = known[key]
            if name in values:
                raise ValueError(f"{key} is {name}, which is given as well")
            refuse_empty(key, value)
            values[name] = as_type(key, value, types[name], is_secret=name in secrets)
    except ValueError as error:
        raise ValueError(f"{file}: {error}") from None
    return values


def _keys(field: dataclasses.Field[Any]) -> list[str]:
    """A field's name and its aliases, as TOML has them."""
    return [name.replace("-", "_") for name in (field.name, *field.metadata.get("aliases", ()))]
