"""The code of docs/reading-and-writing.md runs as it stands and prints what the page says it prints."""

from __future__ import annotations

import re

import pages
import pytest

NUMBER = re.compile(r"-?\d+\.\d+")


def test_the_page_prints_what_it_says(tmp_path):
    names = pages.run("reading-and-writing.md", same)
    assert names["picture"].save(tmp_path / "picture.png").stat().st_size > 10_000


def same(printed: str, wanted: str) -> None:
    assert NUMBER.sub("#", printed) == NUMBER.sub("#", wanted)
    got, expected = ([float(x) for x in NUMBER.findall(text)] for text in (printed, wanted))
    assert got == pytest.approx(expected, abs=0.02)
