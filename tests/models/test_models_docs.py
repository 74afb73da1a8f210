"""The code of docs/models.md runs as it stands, block after block, and gives what the page says."""

from __future__ import annotations

import numpy as np
import pages
import pytest


@pytest.mark.slow
def test_the_page_runs():
    names = pages.run("models.md")
    # a padded row is as if it were alone
    alone = names["call"](names["model"], names["tokens"][1:, names["mask"][1]])
    np.testing.assert_allclose(names["logits"][1, -1], alone[0, -1], atol=1e-4)
    assert names["loss"] > 0
    # what the mesh gives is what one device gives
    np.testing.assert_allclose(names["sharded"], names["whole"], atol=1e-4)
    assert len(names["sharded"].sharding.device_set) == 8
