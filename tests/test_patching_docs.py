"""The code of docs/patching.md runs as it stands and prints what the page says it prints."""

from __future__ import annotations

import contextlib
import io
import re
from pathlib import Path

import jax
import numpy as np
import pytest

PAGE = Path(__file__).parent.parent / "docs" / "patching.md"
NUMBER = re.compile(r"-?\d+\.\d+")


@pytest.mark.slow
def test_the_page_prints_what_it_says():
    names: dict = {}
    found = re.findall(r"```python\n(.*?)```(?:\s*```text\n(.*?)```)?", PAGE.read_text(), re.DOTALL)
    with jax.numpy_dtype_promotion("standard"), jax.numpy_rank_promotion("allow"):  # as a reader would run it
        for code, wanted in found:
            with contextlib.redirect_stdout(io.StringIO()) as printed:
                exec(compile(code, str(PAGE), "exec"), names)
            if wanted:
                assert NUMBER.sub("#", printed.getvalue()) == NUMBER.sub("#", wanted)
                got, expected = ([float(x) for x in NUMBER.findall(text)] for text in (printed.getvalue(), wanted))
                assert got == pytest.approx(expected, abs=0.02)
    assert names["exact"].shape == names["estimate"].shape == (4, 8)
    # one head put back is what a run with that head's clean output is
    by_hand = names["edit"](names["model"], names["at"]("blocks.2.attn.z", names["Replace"](names["donor"][2]), head=1))
    by_hand = names["metric"](names["call"](by_hand, names["corrupt"])) - names["start"]
    np.testing.assert_allclose(names["exact"][2, 1], by_hand, atol=1e-3)
    assert names["found"] > names["start"] + 3
