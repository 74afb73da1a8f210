"""The code of docs/paths.md runs as it stands and prints what the page says it prints."""

from __future__ import annotations

import re

import pages
import pytest

NUMBER = re.compile(r"-?\d+\.\d+")


@pytest.mark.slow
def test_the_page_prints_what_it_says():
    names = pages.run("paths.md", same)
    one, other, both = names["effects"].values[:, 0] - float(names["clean"][0])
    assert abs(one + other - both) > 0.1  # the page says that they do not add up


def same(printed: str, wanted: str) -> None:
    assert NUMBER.sub("#", printed) == NUMBER.sub("#", wanted)
    got, expected = ([float(x) for x in NUMBER.findall(text)] for text in (printed, wanted))
    assert got == pytest.approx(expected, abs=0.02)
