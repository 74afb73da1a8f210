"""The code of docs/token-probes.md runs as it stands and prints what the page says it prints."""

from __future__ import annotations

import re

import pages
import pytest

NUMBER = re.compile(r"-?\d+\.\d+")


@pytest.mark.slow
def test_the_page_prints_what_it_says():
    names = pages.run("token-probes.md", same)
    recall, false = names["judged"](names["fitted"]["max"], names["long"])[1:]
    diluted = names["judged"](names["fitted"]["mean"], names["long"])
    assert recall - false > diluted[1] - diluted[2]  # the page says that the mean is diluted and the maximum is not


def same(printed: str, wanted: str) -> None:
    assert NUMBER.sub("#", printed) == NUMBER.sub("#", wanted)
    got, expected = ([float(x) for x in NUMBER.findall(text)] for text in (printed, wanted))
    assert got == pytest.approx(expected, abs=0.08)
