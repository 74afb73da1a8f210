"""The code of docs/crosscoders-and-transcoders.md runs as it stands, and what it says of the results holds."""

from __future__ import annotations

import re
from pathlib import Path

import jax
import numpy as np
import pytest

PAGE = Path(__file__).parents[2] / "docs" / "crosscoders-and-transcoders.md"


@pytest.mark.slow
def test_the_page_runs():
    names: dict = {}
    with jax.numpy_dtype_promotion("standard"), jax.numpy_rank_promotion("allow"):  # as a reader would run it
        for block in re.findall(r"```python\n(.*?)```", PAGE.read_text(), re.DOTALL):
            exec(compile(block, str(PAGE), "exec"), names)
    assert names["norms"].shape == (4, 128, 4)
    assert (np.asarray(names["norms"])[2, :, :2] == 0).all()
    assert float(names["gap"]) < 1e-3
    assert float(abs(names["logits"] - names["clean"]).max()) > 0.1
    assert float(abs(names["attribution"]).max()) > 0
    assert sum(names["found"].counts.values()) <= 2 * 128
