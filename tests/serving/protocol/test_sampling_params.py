"""What ``SamplingParams`` takes in Python survives the wire; all else is refused where it was written."""

import datetime
import decimal
import enum
import itertools
from typing import Any

import msgspec
import numpy
import pytest
import torch

from splitrank.serving.protocol.messages import AddRequest
from splitrank.serving.protocol.sampling_params import SamplingParams
from splitrank.serving.protocol.wire import decode_front_to_engine, encode


class Number(enum.IntEnum):
    THREE = 3


class Text(str):
    pass


class Count(int):
    pass


class Share(float):
    pass


class Choice(enum.StrEnum):
    A = "a"


class OldChoice(str, enum.Enum):  # noqa: UP042 - its str() is not its value
    A = "a"


def endless() -> list[Any]:
    inside: list[Any] = []
    inside.append(inside)
    return inside


SCALARS: list[Any] = [
    None, True, False, 0, 1, -1, 2, 20, 21, 100, 2**31, 2**53 + 1, 2**63 - 1, 2**63, -(2**63), -(2**63) - 1, 2**64 - 1,
    2**64, 10**400, 10**5000, -(10**5000), 0.0, -0.0, 0.5, 1.0, 16.0, 1e308, float("nan"), float("inf"), -float("inf"),
    1j, decimal.Decimal("0.5"), decimal.Decimal("NaN"), Number.THREE, "", "a", "5", "\n", "\ud800", b"", b"x",
    bytearray(b"x"), datetime.date(2026, 1, 1), object(), int, print, NotImplemented, ...,
    Text("a"), Count(3), Share(0.5), Choice.A, OldChoice.A, numpy.int8(3), numpy.int64(16), numpy.uint64(2**64 - 1),
    numpy.float16(0.5), numpy.float64(0.25),
    numpy.float64("nan"), numpy.bool_(True), numpy.str_("a"), numpy.array(5), numpy.array([5, 6]), numpy.array([]),
    torch.tensor(5), torch.tensor(0.5), torch.tensor([5, 6]), torch.empty(2, device="meta"),
]  # fmt: skip
CONTAINERS: list[Any] = [
    *([one] for one in SCALARS),
    *((one,) for one in SCALARS),
    *({5: one} for one in SCALARS),
    *({one: 1.0} for one in SCALARS if one.__hash__ is not None),
    {"a"}, frozenset({5}), {}, [], (), iter(["a"]), range(3), ["a", 5], [["a"]], [5, [6]],
    ("a" for _ in "a"), endless(),
]  # fmt: skip
FIELDS = SamplingParams.__struct_fields__


def sent(params: SamplingParams) -> SamplingParams:
    """What the engine gets."""
    message = decode_front_to_engine(encode(AddRequest("0", [1], params)))
    assert isinstance(message, AddRequest)
    return message.params


@pytest.mark.parametrize("name", FIELDS)
def test_whatever_is_taken_arrives_as_it_is_here(name: str) -> None:
    taken, refusals = 0, []
    for value in SCALARS + CONTAINERS:
        try:
            params = SamplingParams(**{name: value})
        except ValueError as error:
            refusals.append(str(error))
            continue
        taken += 1
        assert sent(params) == params
        assert repr(sent(params)) == repr(params)  # 1 == 1.0 == True would pass for equal
    assert taken > 0
    assert [reason for reason in refusals if not reason.startswith(f"{name} ") or len(reason) > 300] == []


def test_pairs_of_odd_values() -> None:
    """A value that is right alone may be wrong beside another."""
    for first, second in itertools.product(SCALARS, repeat=2):
        try:
            params = SamplingParams(max_tokens=first, min_tokens=second)
        except ValueError:
            continue
        assert sent(params) == params


@pytest.mark.parametrize(
    ("given", "kept"),
    [
        ({"stop": "\n"}, {"stop": ("\n",)}),
        ({"stop": ["a", "b"]}, {"stop": ("a", "b")}),
        ({"stop_token_ids": [1, 2]}, {"stop_token_ids": (1, 2)}),
        ({"stop_token_ids": numpy.array([1, 2])}, {"stop_token_ids": (1, 2)}),
        ({"temperature": 1}, {"temperature": 1.0}),
        ({"temperature": numpy.float32(0.5), "max_tokens": numpy.int64(7)}, {"temperature": 0.5, "max_tokens": 7}),
        ({"logit_bias": {numpy.int64(5): numpy.float32(1)}}, {"logit_bias": {5: 1.0}}),
        ({"ignore_eos": numpy.bool_(True), "seed": torch.tensor(5)}, {"ignore_eos": True, "seed": 5}),
        ({"top_k": -1}, {"top_k": 0}),
    ],
    ids=str,
)
def test_what_loses_nothing_is_converted(given: dict[str, Any], kept: dict[str, Any]) -> None:
    params = SamplingParams(**given)
    for name, value in kept.items():
        assert (getattr(params, name), type(getattr(params, name))) == (value, type(value))
    assert repr(msgspec.structs.replace(params, min_p=0.5)) == repr(SamplingParams(**kept, min_p=0.5))


@pytest.mark.parametrize(
    ("given", "reason"),
    [
        ({"max_tokens": 16.0}, "max_tokens must be of type int, not 16.0"),
        ({"min_tokens": 2.0}, "min_tokens must be of type int, not 2.0"),
        ({"seed": 1.0}, "seed must be of type int or None, not 1.0"),
        ({"top_k": 0.5}, "top_k must be of type int, not 0.5"),
        ({"top_k": 2**64}, "top_k must be at most 9223372036854775807, not 18446744073709551616"),
        ({"top_k": -2}, "top_k must be at least 0, not -2"),
        ({"ignore_eos": 1}, "ignore_eos must be of type bool, not 1"),
        ({"logprobs": True}, "logprobs must be of type int or None, not True"),
        ({"logprobs": 21}, "logprobs must be at most 20, not 21"),
        ({"stop": (b"x",)}, r"stop must be a list of str, not \(b'x',\)"),
        ({"stop": None}, "stop must be a list of str, not None"),
        ({"stop": "\ud800"}, r"stop must be text without lone surrogates, not '\\ud800'"),
        ({"stop": ("a", "")}, "stop must not hold an empty string"),
        ({"stop_token_ids": (-1,)}, "stop_token_ids must be at least 0, not -1"),
        ({"logit_bias": {"5": 1}}, "logit_bias must be a map of int to float, not {'5': 1}"),
        ({"logit_bias": {5: 101}}, "logit_bias of token 5 must be at most 100, not 101.0"),
        ({"temperature": float("nan")}, "temperature must be at least 0, not nan"),
        ({"top_p": 0}, "top_p must be above 0, not 0.0"),
        ({"max_tokens": 10**5000}, "max_tokens must be at most 9223372036854775807, not a int that cannot be shown"),
        ({"min_tokens": 17}, "min_tokens must be at most max_tokens = 16, not 17"),
    ],
)
def test_a_refusal_names_field_and_value(given: dict[str, Any], reason: str) -> None:
    with pytest.raises(ValueError, match=f"^{reason}$"):
        SamplingParams(**given)


def test_a_callers_dictionary_is_not_kept() -> None:
    bias = {5: 1.0}
    params = SamplingParams(logit_bias=bias)
    bias[6] = 1000.0
    assert params.logit_bias == {5: 1.0}
