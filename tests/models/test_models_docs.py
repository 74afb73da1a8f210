"""The code of docs/models.md runs as it stands, block after block, and gives what the page says."""

from __future__ import annotations

import re
from pathlib import Path

import jax
import numpy as np
import pytest

PAGE = Path(__file__).parents[2] / "docs" / "models.md"


@pytest.mark.slow
def test_the_page_runs():
    names: dict = {}
    with jax.numpy_dtype_promotion("standard"), jax.numpy_rank_promotion("allow"):  # as a reader would run it
        for block in re.findall(r"```python\n(.*?)```", PAGE.read_text(), re.DOTALL):
            exec(compile(block, str(PAGE), "exec"), names)
    # a padded row is as if it were alone
    alone = names["call"](names["model"], names["tokens"][1:, names["mask"][1]])
    np.testing.assert_allclose(names["logits"][1, -1], alone[0, -1], atol=1e-4)
    assert names["loss"] > 0
    # what the mesh gives is what one device gives
    np.testing.assert_allclose(names["sharded"], names["whole"], atol=1e-4)
    assert len(names["sharded"].sharding.device_set) == 8
