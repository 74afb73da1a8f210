"""The code of docs/circuits-edges.md runs as it stands and prints what the page says it prints."""

from __future__ import annotations

import re

import numpy as np
import pages
import pytest

NUMBER = re.compile(r"-?\d+\.\d+")


@pytest.mark.slow
def test_the_page_prints_what_it_says():
    names = pages.run("circuits-edges.md", same)
    np.testing.assert_allclose(names["metrics"][-1], names["clean"], atol=1e-4)
    assert set(names["scores"].circuit(3).edge_names()) == {edge for edge, _, _ in names["scores"].largest(3)}


def same(printed: str, wanted: str) -> None:
    assert NUMBER.sub("#", printed) == NUMBER.sub("#", wanted)
    got, expected = ([float(x) for x in NUMBER.findall(text)] for text in (printed, wanted))
    assert got == pytest.approx(expected, abs=0.02)
