"""The README's code runs as it stands, on the model that ships, and gives what its comments say."""

from __future__ import annotations

import re
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

README = Path(__file__).parent.parent / "README.md"


@pytest.fixture
def default_promotion():
    """As a reader would run it: without this test-suite's strictness."""
    with jax.numpy_dtype_promotion("standard"), jax.numpy_rank_promotion("allow"):
        yield


def test_the_first_screen_of_code_runs(default_promotion):
    screen = re.findall(r"```python\n(.*?)```", README.read_text(), re.DOTALL)[0]
    names: dict = {}
    exec(compile(screen, str(README), "exec"), names)
    n = names["tokens"].shape[1]
    assert names["acts"]["blocks.*.resid_post"].shape == (4, 1, n, 256)
    assert set(names["grads"]) == {"blocks.*.resid_post", "blocks.*.attn.z"}
    assert names["grid"].shape[:2] == (4, n)
    # patching the last layer's last position is the donor's own prediction there
    donor = names["call"](names["model"], names["tokens"][:, ::-1])
    np.testing.assert_allclose(names["grid"][-1, -1, 0, -1], donor[0, -1], rtol=1e-3, atol=1e-3)
    assert jnp.isfinite(names["value"])
