"""The code of docs/benchmarking-dictionaries.md runs as it stands, and its figures are what the page says."""

from __future__ import annotations

import pages
import pytest


@pytest.mark.slow
def test_the_page_runs():
    names = pages.run("benchmarking-dictionaries.md")
    probing = {m.name: m for m in names["found"].measures()}
    assert probing["probing accuracy, all"].estimates["raw values"].value > 0.8
    assert probing["probing accuracy, k=5"].better_than_random() != "yes"  # the dictionary is a random one
    assert names["full"].estimates["dictionary"].value == 0
    assert set(names["scores"]) == {"dictionary", "random", "principal components", "raw values"}
    result = names["result"]
    assert 0 < result.unchanged <= 1
    assert result.score >= 1 - result.unchanged
