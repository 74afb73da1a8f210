"""Erasers beside those of concept-erasure, the package of the authors of LEACE."""

from __future__ import annotations

import jax.numpy as jnp
import numpy as np
import pytest
from oracle import run_oracle

from jax_interp.probes.erasure import Leace, MeanProjection, concept_of, oracle_eraser

pytestmark = pytest.mark.parity


@pytest.mark.parametrize("n", [400, 30], ids=["n > d", "n < d"])
def test_erasers_are_those_of_concept_erasure(tmp_path, n):
    rng = np.random.default_rng(0)
    y = np.arange(n) % 3
    x = rng.standard_normal((n, 48)) @ rng.standard_normal((48, 48)) / 7 + rng.standard_normal((3, 48))[y]
    x, z = x.astype(np.float32), concept_of(y)
    np.savez(tmp_path / "in.npz", x=x, z=z)
    run_oracle("concept_erasure", "concept_erasure_values.py", tmp_path / "in.npz", tmp_path / "out.npz")
    theirs = np.load(tmp_path / "out.npz")
    ours = {"leace": Leace(), "shrunk": Leace("auto"), "orthogonal": MeanProjection()}
    for name, erasure in ours.items():
        np.testing.assert_allclose(erasure.fit(x, z)(jnp.asarray(x)), theirs[name], atol=1e-4, err_msg=name)
    np.testing.assert_allclose(oracle_eraser(x, z)(jnp.asarray(x), jnp.asarray(z)), theirs["oracle"], atol=1e-4)
