"""The code of docs/generation.md runs as it stands, block after block."""

from __future__ import annotations

import pages
import pytest


@pytest.mark.slow
def test_the_page_runs():
    names = pages.run("generation.md")
    assert all(completion.text for completion in names["completions"])
