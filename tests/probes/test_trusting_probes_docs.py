"""The code of docs/trusting-probes.md runs as it stands and prints what the page says it prints."""

from __future__ import annotations

import re

import pages
import pytest

NUMBER = re.compile(r"-?\d+\.\d+")


@pytest.mark.slow
def test_the_page_prints_what_it_says():
    names = pages.run("trusting-probes.md", same)
    before = names["report"].chosen["MassMean"].elsewhere["upper case"].accuracy.value
    assert names["found"].chosen["MassMean"].elsewhere["upper case"].accuracy.value > before + 0.2


def same(printed: str, wanted: str) -> None:
    assert NUMBER.sub("#", printed) == NUMBER.sub("#", wanted)
    got, expected = ([float(x) for x in NUMBER.findall(text)] for text in (printed, wanted))
    assert got == pytest.approx(expected, abs=0.03)
