"""The code of docs/monitors.md runs as it stands, and its figures are those of the page."""

from __future__ import annotations

import pages
import pytest


@pytest.mark.slow
def test_the_page_shows_what_its_code_finds():
    names = pages.run("monitors.md")
    report, figures = names["report"], names["figures"]
    for name, value in {"bag of words": 0.506, "probe": 0.980, "surprise": 0.995, "Stacking": 1.000}.items():
        assert report.figures(name).auroc.value == pytest.approx(value, abs=0.02)
    assert report.figures("probe").recall[0].recall.value == pytest.approx(0.825, abs=0.08)
    assert figures.recall.value == pytest.approx(0.925, abs=0.05)
    assert figures.cost <= 0.11 * names["dear"]
    assert len(names["figure"].axes) == 1
