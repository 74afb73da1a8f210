"""The code of docs/plots.md runs, and writes every file that it names."""

from __future__ import annotations

import pages


def test_the_page_runs():
    names = pages.run("plots.md")
    written = sorted(path.name for path in names["directory"].iterdir())
    assert written == ["attention.svg", "circle.svg", "grid.png", "heads.svg", "lens.svg", "loss.html"]
