"""The code of docs/patching.md runs as it stands and prints what the page says it prints."""

from __future__ import annotations

import re

import numpy as np
import pages
import pytest

NUMBER = re.compile(r"-?\d+\.\d+")


@pytest.mark.slow
def test_the_page_prints_what_it_says():
    names = pages.run("patching.md", same)
    assert names["exact"].shape == names["estimate"].shape == (4, 8)
    # one head put back is what a run with that head's clean output is
    by_hand = names["edit"](names["model"], names["at"]("blocks.2.attn.z", names["Replace"](names["donor"][2]), head=1))
    by_hand = names["metric"](names["call"](by_hand, names["corrupt"])) - names["start"]
    np.testing.assert_allclose(names["exact"][2, 1], by_hand, atol=1e-3)
    assert names["found"] > names["start"] + 3


def same(printed: str, wanted: str) -> None:
    assert NUMBER.sub("#", printed) == NUMBER.sub("#", wanted)
    got, expected = ([float(x) for x in NUMBER.findall(text)] for text in (printed, wanted))
    assert got == pytest.approx(expected, abs=0.02)
