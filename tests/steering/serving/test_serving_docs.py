"""The code of docs/serving.md runs as it stands and prints what the page shows."""

from __future__ import annotations

import pages
import pytest


@pytest.mark.slow
def test_the_page_runs():
    def same(printed: str, wanted: str) -> None:
        assert printed.strip() == wanted.strip()

    pages.run("serving.md", same)
