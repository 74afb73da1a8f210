"""The page about attribution: its code runs and prints what it says."""

from __future__ import annotations

from pages import run


def test_the_page_runs_and_prints_what_it_says():
    def compare(printed, wanted):
        assert printed.strip() == wanted.strip()

    names = run("attribution.md", compare)
    assert names["found"].nodes == names["heads"]
