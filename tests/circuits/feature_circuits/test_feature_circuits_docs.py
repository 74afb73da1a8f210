"""The code of docs/feature-circuits.md runs as it stands, and its figures are those that it says."""

from __future__ import annotations

import numpy as np
import pages
import pytest


@pytest.mark.slow
def test_the_page_runs(tmp_path):
    names = pages.run("feature-circuits.md")
    assert names["effects"].addresses == ("blocks.1.resid_post", "blocks.2.attn_out", "blocks.2.resid_post")
    assert "<svg" in names["page"]
    assert names["curve"].shape == (4, 3, 2, 3)
    mean = dict(zip(names["scores"].axes["method"], names["scores"].mean("seed").values, strict=True))
    written = {"original": (0.53, 0.95), "SHIFT + retrain": (0.86, 0.55), "oracle": (0.83, 0.51)}
    for method, figures in written.items():
        np.testing.assert_allclose(mean[method][:2], figures, atol=0.05)
