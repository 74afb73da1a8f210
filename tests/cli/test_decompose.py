"""decompose: what it measures of toys, and what it refuses before it trains."""

from __future__ import annotations

import jax
import pytest

from jax_interp.cli.decompose import against
from jax_interp.decomposition import DecompositionConfig, Trained
from jax_interp.decomposition.importance import ScalarGates, init_importance
from jax_interp.decomposition.linearity import ideal
from jax_interp.decomposition.train import template
from jax_interp.models.toys.known_features import known_features
from jax_interp.models.toys.resid_mlp import ResidMLPConfig, init_resid_mlp
from jax_interp.models.toys.tms import TMSConfig, init_tms, insert_identity


def drawn(settings: DecompositionConfig, target) -> Trained:
    """A decomposition as it is drawn, before any step."""
    parts = template(settings, target)
    return Trained(parts, init_importance(settings.importance, jax.random.key(0), parts), settings.sigmoid)


@pytest.mark.parametrize("toy", ["identity", "residual MLP"])
def test_toys_are_measured_whatever_is_decomposed(toy):
    """Only an inserted identity of TMS; both matrices of a residual MLP."""
    if toy == "identity":
        settings = DecompositionConfig(("hidden_layers.0",), C=3, importance=ScalarGates(2))
        target = insert_identity(init_tms(jax.random.key(0), TMSConfig(3, 2)))
        probed, expected = {"hidden_layers.0"}, {"hidden_layers.0": "dense, 2 components"}
    else:
        settings = DecompositionConfig(("blocks.*.mlp",), C=3, importance=ScalarGates(2))
        target = init_resid_mlp(jax.random.key(0), ResidMLPConfig(3, 3, n_layers=1, d_mlp=2, identity=True))
        probed = {"blocks.0.mlp.up", "blocks.0.mlp.down"}
        expected = {"blocks.*.mlp.up": "identity", "blocks.*.mlp.down": "dense, 2 components"}
    trained = drawn(settings, target)
    known = known_features(target)
    assert known is not None
    found = against(known, settings, trained, ideal(trained.model, known.parts))
    assert set(found["probe"]) == probed
    assert {name: one["pattern"] for name, one in found["pattern_errors"].items()} == expected
    assert [row["name"] for row in found["composites"]][::4] == ["1 on, needed parts alone", "2 on, needed parts alone"]
    assert (found["composites"][0]["excess"] is not None) == (toy == "residual MLP")
    assert "mmcs" not in found
