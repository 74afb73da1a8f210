"""The code of docs/finding-vectors.md runs as it stands."""

from __future__ import annotations

import numpy as np
import pages
import pytest


@pytest.mark.slow
def test_the_page_runs():
    names = pages.run("finding-vectors.md")
    assert np.isfinite(np.asarray(names["logits"])).all()
    assert np.isfinite(names["relative"].values).all()
