"""The code of docs/applying-steering.md runs as it stands, and its two models without a direction agree."""

from __future__ import annotations

import jax.numpy as jnp
import numpy as np
import pages
import pytest

from jax_interp.surgery import call


@pytest.mark.slow
def test_the_page_runs():
    def compare(printed, wanted):
        assert printed == wanted

    names = pages.run("applying-steering.md", compare)
    tokens = names["tokens"]
    one, two = (np.asarray(call(names[name], tokens), np.float32) for name in ("without", "same"))
    np.testing.assert_allclose(one, two, atol=1e-2 * float(jnp.abs(two).max()))
    assert names["gates"].shape == (3,)
