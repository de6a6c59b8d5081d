"""Division that rounds up, of one number and of an array."""

import numpy as np
import pytest

from splitrank.models.rounding import ceil_div, pages_needed

PAGES = [(0, 0), (1, 1), (4, 1), (5, 2), (8, 2)]


@pytest.mark.parametrize(("tokens", "pages"), PAGES)
def test_pages_needed_rounds_up(tokens: int, pages: int) -> None:
    assert pages_needed(tokens, 4) == pages


def test_an_array_is_divided_item_by_item() -> None:
    tokens, pages = np.array(PAGES).T
    assert ceil_div(tokens, 4).tolist() == pages.tolist()
