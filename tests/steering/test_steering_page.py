"""The code of docs/steering.md runs as it stands, and the vector does what the page says."""

from __future__ import annotations

import pages
import pytest


@pytest.mark.slow
def test_the_page_runs_and_its_vector_steers():
    report = pages.run("steering.md")["report"]
    assert report.strengths == (-0.3, 0.0, 0.3)
    assert report.slope.mean.low > 0
