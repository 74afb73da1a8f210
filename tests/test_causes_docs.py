"""The code of the pages on probes as causes and on erasure runs as it stands and prints what they say it prints."""

from __future__ import annotations

import re

import pages
import pytest

NUMBER = re.compile(r"-?\d+\.\d*")


@pytest.mark.slow
@pytest.mark.parametrize("page", ["probes-as-causes.md", "erasing-concepts.md"])
def test_the_page_prints_what_it_says(page):
    pages.run(page, same)


def same(printed: str, wanted: str) -> None:
    assert NUMBER.sub("#", printed) == NUMBER.sub("#", wanted)
    got, expected = ([float(x) for x in NUMBER.findall(text)] for text in (printed, wanted))
    assert got == pytest.approx(expected, abs=0.05)
