"""The code of docs/causal-variables.md runs as it stands and prints what the page says it prints."""

from __future__ import annotations

import re

import pages
import pytest

NUMBER = re.compile(r"\d+\.\d+")


@pytest.mark.slow
def test_the_page_prints_what_it_says():
    names = pages.run("causal-variables.md", same)
    assert names["grid"].shape == (4, 3, 4, 1, 1)
    assert names["answer"].values[0, 0] > names["answer"].values[1:5, 0].max() + 0.1


def same(printed: str, wanted: str) -> None:
    # A maximum over cells that are equal may be at another place.
    without_places = lambda text: NUMBER.sub("#", re.sub(r", after block .*", "", text))
    assert without_places(printed) == without_places(wanted)
    got, expected = ([float(x) for x in NUMBER.findall(text)] for text in (printed, wanted))
    assert got == pytest.approx(expected, abs=0.1)
