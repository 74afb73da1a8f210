"""The code of docs/measuring-steering.md runs as it stands, and its figures are consistent."""

from __future__ import annotations

import pages
import pytest


@pytest.mark.slow
def test_the_page_runs_and_its_figures_agree():
    names = pages.run("measuring-steering.md")
    report, matrix = names["report"], names["matrix"]
    assert report.steerability.slope.mean == names["steerability"](names["found"]).slope.mean
    assert matrix.table("relative").values.diagonal().tolist() == [1.0, 1.0]
    assert len(names["rows"]) == 3
    shared = set(names["parts"]["find"].groups) & set(names["in_chat"]["measure"].groups)
    assert shared == set()
