"""The code of docs/evaluating-dictionaries.md runs as it stands, and the controls come out in the order it says."""

from __future__ import annotations

import re
from pathlib import Path

import jax
import numpy as np
import pytest

PAGE = Path(__file__).parents[2] / "docs" / "evaluating-dictionaries.md"


@pytest.mark.slow
def test_the_page_runs():
    names: dict = {}
    with jax.numpy_dtype_promotion("standard"), jax.numpy_rank_promotion("allow"):  # as a reader would run it
        for block in re.findall(r"```python\n(.*?)```", PAGE.read_text(), re.DOTALL):
            exec(compile(block, str(PAGE), "exec"), names)
    fvu = names["fvu"]
    assert fvu["principal components"] < fvu["neurons"]
    assert fvu["random, decoder fitted"] < fvu["random"]
    assert fvu["random, decoder fitted, codes searched"] < fvu["random, decoder fitted"]
    np.testing.assert_allclose(names["scales"], 1, atol=0.05)
    assert (np.diff(names["pareto"]) < 1e-3).all()
