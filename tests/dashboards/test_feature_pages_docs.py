"""The code of docs/feature-pages.md runs as it stands."""

from __future__ import annotations

import numpy as np
import pages
import pytest


@pytest.mark.slow
def test_the_page_runs():
    names = pages.run("feature-pages.md")
    data = names["data"]
    for other in ("again", "same"):
        np.testing.assert_array_equal(names[other].firings, data.firings)
    np.testing.assert_array_equal(names["found"].data.firings, data.firings)
    assert names["found"].explanations[17] == ("a word at the end of a line",)
    assert names["of_neurons"].units.tolist() == [3, 17]
    assert names["effects"].loss_effect.shape == (2,)
