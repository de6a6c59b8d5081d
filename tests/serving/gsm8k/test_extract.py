"""Extraction on the outputs that trip parsers; lm-eval's own results, where it has one, are the expectation."""

import pytest

from splitrank.serving.gsm8k.extract import extract_flexible, extract_strict, reference_answer


@pytest.mark.parametrize(
    ("text", "strict", "flexible"),
    [
        (" She makes 9 * 2 = $<<9*2=18>>18.\n#### 18", "18", "18"),
        ("#### 18\n\n", "18", "18"),
        ("#### 1,234,567", "1234567", "1234567"),
        ("#### -5", "-5", "-5"),
        ("#### 18.", "18", "18"),
        ("#### 18.50", "18.50", "18.50"),
        ("#### $18", None, "18"),  # the strict form has no place for a dollar
        ("####18", None, "18"),
        ("### 18", None, "18"),
        ("#### 7\n\nQ: next\n#### 9", "7", "9"),  # strict takes the first, flexible the last
        ("The answer is 42.", None, "42"),
        ("The answer is $1,000.", None, "1000"),
        ("It costs $5", None, "5"),
        ("it is -3 degrees", None, "-3"),
        ("3", None, "3"),
        ("from 10 to 20 apples", None, "20"),
        ("50% of 8", None, "8"),
        ("1/2", None, "2"),
        ("no number at all", None, None),
        ("", None, None),
        ("#### ", None, None),
        ("#### .", None, None),
        ("so it goes...", None, None),  # dots alone are no number
        ("the answer is 12 ...", None, None),
        ("#### 18 apples", "18", "18"),
        ("#### ١٨", None, None),  # other scripts' digits are not what the data holds
    ],
)
def test_extraction(text: str, strict: str | None, flexible: str | None) -> None:
    assert extract_strict(text) == strict
    assert extract_flexible(text) == flexible


@pytest.mark.parametrize(
    ("answer", "reference"),
    [
        ("Janet sells 16 - 3 - 4 = <<16-3-4=9>>9.\n#### 18", "18"),
        ("a\n#### 2,125", "2125"),
        ("a\n#### -10", "-10"),
        ("see #### 3\nthen\n#### 4", "4"),
        ("no mark 18", None),
        ("#### none", None),
    ],
)
def test_reference(answer: str, reference: str | None) -> None:
    assert reference_answer(answer) == reference
