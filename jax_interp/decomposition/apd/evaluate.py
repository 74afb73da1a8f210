"""All figures of an APD decomposition on one batch, as plain data."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from jax_interp.decomposition.apd.ablatable import of_components
from jax_interp.decomposition.apd.attributions import component_masks
from jax_interp.decomposition.apd.spectrum import spectra
from jax_interp.decomposition.apd.train import APDConfig, losses
from jax_interp.decomposition.apd.trained import TrainedAPD
from jax_interp.decomposition.components import Decomposed
from jax_interp.decomposition.evaluate import composites
from jax_interp.decomposition.linearity import LinearityReport, linearity, over
from jax_interp.decomposition.losses.faithfulness import faithfulness, relative_faithfulness
from jax_interp.decomposition.losses.scene import distance
from jax_interp.decomposition.masks import masked_output
from jax_interp.decomposition.metrics import identity_error, probe


def evaluate_apd(config: APDConfig, trained: TrainedAPD, x: Array) -> dict[str, Any]:
    """Faithfulness, the parameter match; every loss; errors with the top k, all and none of the components; on what
    share of rows each is kept (`rate`), and its singular values in every matrix. JSON values."""

    @jax.jit
    def figures(trained: TrainedAPD, x: Array) -> dict[str, Any]:
        model, kept = trained.model, trained.kept(x)
        masks = {"top_k": kept, "unmasked": jnp.ones_like(kept), "zero": jnp.zeros_like(kept)}
        output = model(x)
        error = {
            kind: distance("mse", output, masked_output(model, component_masks(model, mask, trained.rank), x))
            for kind, mask in masks.items()
        }
        loss, terms = losses(config, model, x)
        return {
            "faithfulness": faithfulness(model),
            "relative_faithfulness": relative_faithfulness(model),
            "losses": {"loss": loss, **terms},
            "error": error,
            "error_unrecovered": {kind: value / error["zero"] for kind, value in error.items()},
            "threshold": trained.threshold,
            "l0": jnp.mean(jnp.sum(kept, axis=1)),
            "alive": jnp.sum(jnp.any(kept > 0, axis=0)),
            "rate": jnp.mean(kept, axis=0),
        }

    found = jax.tree.map(lambda leaf: np.asarray(leaf).tolist(), figures(trained, x))
    values = {name: one.values.round(6).tolist() for name, one in spectra(trained.model, trained.rank).items()}
    return found | {"singular_values": values}


def linearity_of_apd(
    trained: TrainedAPD, x: Array, *, oracle: Decomposed | None = None, **options: Any
) -> LinearityReport:
    """The linearity report on `x` with the components as parts and those that are kept as the needed ones. With
    `oracle` (see `linearity.ideal`), whose components are features, every figure has its excess over the oracle's."""
    report = linearity(of_components(trained.model, trained.rank), jax.jit(TrainedAPD.kept)(trained, x), x, **options)
    if oracle is None:
        return report
    return over(report, linearity(of_components(oracle, 1), _on(x), x, **options))


def features_of_apd(
    trained: TrainedAPD, n_features: int, *, oracle: Decomposed | None = None, **options: Any
) -> dict[str, Any]:
    """Of a model whose inputs are features, on one-hot probes: the attributions on each feature's (`probe`), how far
    the components kept there are from one for each feature (`identity_error`), and `composites`, each feature owning
    the components that are kept. JSON values."""
    x = probe(n_features)
    scores, kept = jax.device_get(jax.jit(lambda trained, x: (trained.attributions(x), trained.kept(x)))(trained, x))
    parts = of_components(trained.model, trained.rank), np.asarray(kept) > 0
    least = None if oracle is None else (of_components(oracle, 1), np.asarray(_on(x)) > 0)
    return {
        "probe": [[float(f"{score:.4g}") for score in row] for row in scores],
        "identity_error": identity_error(kept),
        "composites": composites(parts, least, **options),
    }


def _on(x: Float[Array, "batch feature"]) -> Float[Array, "batch feature"]:
    return (x != 0).astype(jnp.float32)
