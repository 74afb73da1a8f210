"""Interchange interventions give the logits of pyvene: whole values, subspaces, soft masks, moving positions."""

from __future__ import annotations

import jax.numpy as jnp
import numpy as np
import pytest
from oracle import run_oracle

from jax_interp.circuits.causal_variables import (
    Coordinates,
    InterchangeData,
    Location,
    Subspace,
    Whole,
    interchange,
)
from jax_interp.models import load

pytestmark = pytest.mark.parity

CASES = {
    "whole": "blocks.1.resid_post",
    "whole of two positions": "blocks.1.resid_post",
    "low rank": "blocks.1.resid_post",
    "rotation": "blocks.1.mlp_out",
    "boundless": "blocks.1.resid_post",
    "neurons": "blocks.1.attn_out",
}


@pytest.fixture(scope="module")
def theirs(tmp_path_factory):
    folder = tmp_path_factory.mktemp("pyvene")
    run_oracle("pyvene", "pyvene_interchange.py", folder)
    with np.load(folder / "cases.npz") as arrays:
        return load(folder / "model")[0], dict(arrays)


@pytest.mark.parametrize("case", CASES)
def test_the_logits_are_those_of_pyvene(theirs, case):
    model, arrays = theirs
    base, source = (jnp.asarray(arrays[name], jnp.int32) for name in ("base", "source"))
    places = (arrays[f"{case}.base_pos"], arrays[f"{case}.source_pos"])
    count = places[0].shape[1]
    positions = {str(i): jnp.asarray([place[:, i] for place in places], jnp.int32) for i in range(count)}
    unread = jnp.zeros(base.shape, jnp.int32)
    data = InterchangeData(base, source[None], unread, unread, positions)
    basis, mask = (
        None if (f := arrays.get(f"{case}.{name}")) is None else jnp.asarray(f) for name in ("basis", "mask")
    )
    if case == "rotation":
        basis = basis[:, :4]
    features = (
        Coordinates(mask) if basis is None and mask is not None else Whole() if basis is None else Subspace(basis, mask)
    )
    ours = interchange(model, data, [Location(CASES[case], tuple(positions))], [features])
    plain = model(base)
    assert np.abs(ours - plain).max() > 0.1  # the intervention does something
    np.testing.assert_allclose(ours, arrays[f"{case}.logits"], atol=5e-5)
