"""Extracts the number that an answer ends in, as lm-eval's ``gsm8k`` task does (0.4.13)."""

import re

# The format of the shots; the first "#### 18" counts.
_STRICT = re.compile(r"#### (\-?[0-9\.\,]+)")
# Any number; the last one counts. The first form also takes "$1,000.50"; a single digit needs the second.
_FLEXIBLE = re.compile(r"(-?[$0-9.,]{2,})|(-?[0-9]+)")
_DIGIT = re.compile(r"[0-9]")


def extract_strict(text: str) -> str | None:
    """Normalised number after the first ``####``; None when there is none."""
    match = _STRICT.search(text)
    return _normalised_number(match.group(1)) if match else None


def extract_flexible(text: str) -> str | None:
    """Normalised last number of the text; None when there is none."""
    matches = list(_FLEXIBLE.finditer(text))
    return _normalised_number(matches[-1].group(0)) if matches else None


def reference_answer(answer: str) -> str | None:
    """The number that a data line's solution ends in: what follows its last ``#### ``."""
    _, mark, number = answer.rpartition("#### ")
    return _normalised_number(number.strip()) if mark else None


def _normalised_number(text: str) -> str | None:
    """``$1,000.`` becomes ``1000``. A match without a digit ("...") is a wrong answer for lm-eval; here it is
    unparsable, which counts as wrong, too, but is shown."""
    text = text.strip().replace(",", "").replace("$", "").removesuffix(".")
    return text if _DIGIT.search(text) else None
