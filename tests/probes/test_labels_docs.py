"""The code of docs/labels-and-tokens.md runs as it stands and prints what the page says."""

from __future__ import annotations

import pages
import pytest


@pytest.mark.slow
def test_the_page_prints_what_it_says():
    def same(printed: str, wanted: str) -> None:
        assert printed.strip() == wanted.strip()

    pages.run("labels-and-tokens.md", same)
