"""The code of docs/analysis.md runs as it stands and prints what the page says it prints."""

from __future__ import annotations

import re

import pages
import pytest

NUMBER = re.compile(r"-?\d+\.?\d*")


@pytest.mark.slow
def test_every_block_prints_what_the_page_says():
    compared = []

    def same(printed: str, wanted: str) -> None:
        """Words to the letter; numbers nearly, for some of the text is the running Python's own library."""
        assert NUMBER.sub("#", printed) == NUMBER.sub("#", wanted)
        got, expected = ([float(x) for x in NUMBER.findall(text)] for text in (printed, wanted))
        assert got == pytest.approx(expected, abs=0.05, rel=0.1)
        compared.append(wanted)

    pages.run("analysis.md", same)
    assert len(compared) == (pages.DOCS / "analysis.md").read_text().count("```text")
