"""The code of docs/eliciting.md runs as it stands."""

from __future__ import annotations

import numpy as np
import pages
import pytest


@pytest.mark.slow
def test_the_page_runs():
    names = pages.run("eliciting.md")
    assert names["found"].scores[0] > names["found"].null.max()
    assert len(names["factors"]) == len(names["linear"]) == 4
    assert np.isfinite(names["logits"]).all()
    assert (np.diff(names["aimed"].scores) <= 0).all()
