"""The code of docs/finding-circuits.md runs as it stands and prints what the page says it prints."""

from __future__ import annotations

import re

import numpy as np
import pages
import pytest

NUMBER = re.compile(r"-?\d+(?:\.\d+)?")


@pytest.mark.slow
def test_the_page_prints_what_it_says():
    names = pages.run("finding-circuits.md", same)
    assert names["report"].cmd().high < names["report"].random_cmd().low
    assert names["masks"].keep.sum() == round(0.3 * len(names["heads"]))
    assert np.isfinite(names["scores"]).all()


def same(printed: str, wanted: str) -> None:
    """The same words, and numbers that agree. The last digits of figures differ between machines."""
    assert NUMBER.sub("#", printed) == NUMBER.sub("#", wanted)
    got, expected = ([float(x) for x in NUMBER.findall(text)] for text in (printed, wanted))
    assert got == pytest.approx(expected, abs=0.1, rel=0.1)
