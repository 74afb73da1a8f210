"""The code of docs/crosscoders-and-transcoders.md runs as it stands, and what it says of the results holds."""

from __future__ import annotations

import numpy as np
import pages
import pytest


@pytest.mark.slow
def test_the_page_runs():
    names = pages.run("crosscoders-and-transcoders.md")
    assert names["norms"].shape == (4, 128, 4)
    assert (np.asarray(names["norms"])[2, :, :2] == 0).all()
    assert float(names["gap"]) < 1e-3
    assert float(abs(names["logits"] - names["clean"]).max()) > 0.1
    assert float(abs(names["attribution"]).max()) > 0
    assert names["loaded"].address == names["reads"]
    np.testing.assert_array_equal(names["again"](names["tokens"]), names["local"](names["tokens"]))
    assert names["source"].write_sites == 2
    assert sum(names["found"].counts.values()) <= 2 * 128
