"""The page about attribution graphs runs as it stands, and prints what it says."""

from __future__ import annotations

import numpy as np
import pages
import pytest


def same(printed: str, wanted: str) -> None:
    assert printed == wanted


@pytest.mark.slow
def test_the_page_about_attribution_graphs():
    names = pages.run("attribution-graphs.md", same)
    assert names["pruned"].nodes.sum() > 10
    assert 0 < names["quality"].replacement < 1
    assert not np.allclose(names["before"], names["after"])
