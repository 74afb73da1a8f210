"""The code of docs/defences.md runs as it stands, and its report says what the page says."""

from __future__ import annotations

import pages
import pytest


@pytest.mark.slow
def test_the_page_runs_and_each_defence_stops_harmful_answers():
    report = pages.run("defences.md")["report"]
    of = lambda defence, name: report.figure(defence, name).value
    assert of("untouched", "harmful: no attack") == 1
    for defence in ("probe", "head", "rerouting", "twin"):
        assert of(defence, "harmful: no attack") < 0.1, report
        assert of(defence, "harmful: embedding") >= of(defence, "harmful: no attack")
