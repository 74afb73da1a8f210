"""All metrics of an APD decomposition on one batch, as JSON values."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from jax_interp.core.layer import upcast_leaves
from jax_interp.core.processes import to_host
from jax_interp.core.pytrees import register_dataclass
from jax_interp.decomposition.apd.attributions import component_masks
from jax_interp.decomposition.apd.config import APDConfig
from jax_interp.decomposition.apd.losses import apd_losses
from jax_interp.decomposition.apd.spectrum import spectra
from jax_interp.decomposition.apd.trained import TrainedAPD
from jax_interp.decomposition.components import Decomposed
from jax_interp.decomposition.evaluate import GRID, LINEARITY, composites, json_values
from jax_interp.decomposition.linearity import (
    DecompositionForward,
    GridSettings,
    LinearityReport,
    LinearitySettings,
    MaskedForward,
    MaskedFunction,
    linearity,
    mask_decomposition,
)
from jax_interp.decomposition.linearity.masked_function import layer_count
from jax_interp.decomposition.losses.base import distance
from jax_interp.decomposition.losses.faithfulness import faithfulness, relative_faithfulness
from jax_interp.decomposition.masks import masked_output
from jax_interp.decomposition.metrics import identity_error, one_hot_inputs, share


def evaluate_apd(config: APDConfig, trained: TrainedAPD, x: Array) -> dict[str, Any]:
    """All metrics of a trained decomposition on one batch.

    Args:
      config: the config of the run.
      trained: the decomposition.
      x: the batch.

    Returns:
      JSON values: faithfulness, every loss, L0, the errors with the top k, all and none of the components, the share of
      rows on which each component is kept (`rate`), and the singular values of each component in every matrix.
    """

    @jax.jit
    def figures(trained: TrainedAPD, x: Array) -> dict[str, Any]:
        model, kept = trained.model, trained.kept(x)
        masks = {"top_k": kept, "unmasked": jnp.ones_like(kept), "zero": jnp.zeros_like(kept)}
        output = model(x)
        error = {
            kind: distance("mse", output, masked_output(model, component_masks(model, mask, trained.rank), x))
            for kind, mask in masks.items()
        }
        loss, terms = apd_losses(config, model, x)
        return {
            "faithfulness": faithfulness(model),
            "relative_faithfulness": relative_faithfulness(model),
            "losses": {"loss": loss, **terms},
            "error": error,
            "error_unrecovered": {kind: share(value, error["zero"]) for kind, value in error.items()},
            "threshold": trained.threshold,
            "l0": jnp.mean(jnp.sum(kept, axis=1)),
            "alive": jnp.sum(jnp.any(kept > 0, axis=0)),
            "rate": jnp.mean(kept, axis=0),
        }

    found = json_values(figures(trained, upcast_leaves(x)))
    values = {name: one.values.round(6).tolist() for name, one in spectra(trained.model, trained.rank).items()}
    return found | {"singular_values": values}


def linearity_of_apd(
    trained: TrainedAPD,
    x: Array,
    *,
    oracle: Decomposed | None = None,
    key: Array | None = None,
    settings: LinearitySettings = LINEARITY,
) -> LinearityReport:
    """The linearity report with components as parts. The components that are kept on a row are the needed parts.

    Args:
      trained: the decomposition.
      x: a batch.
      oracle: the decomposition that is known to be right (`linearity.oracle_decomposition`), with features as
        components. The report then also has the excess of each error over the oracle's.
      key: random key; None: key 0.
      settings: how many samples and steps the measurement uses.
    """
    masked = mask_components(trained.model, trained.rank)
    measure = partial(linearity, data=x, key=key, settings=settings)
    report = measure(masked, jax.jit(TrainedAPD.kept)(trained, x))
    return report if oracle is None else report.with_excess(measure(mask_components(oracle, 1), _features_on(x)))


def features_of_apd(
    trained: TrainedAPD,
    n_features: int,
    *,
    oracle: Decomposed | None = None,
    active: Sequence[int] = (1, 2),
    key: Array | None = None,
    settings: GridSettings = GRID,
) -> dict[str, Any]:
    """Metrics on one-hot inputs, for a model whose inputs are features.

    Args:
      trained: the decomposition.
      n_features: the number of inputs.
      oracle: the decomposition that is known to be right, or None.
      active, key, settings: as in `evaluate.composites`.

    Returns:
      JSON values: the attributions on each feature's input (`probe`), how far the kept components are from exactly one
      for each feature (`identity_error`), and `composites`, where a feature needs the components kept on its input.
    """
    x = one_hot_inputs(n_features)
    scores, kept = to_host(jax.jit(lambda trained, x: (trained.attributions(x), trained.kept(x)))(trained, x))
    own = mask_components(trained.model, trained.rank), np.asarray(kept) > 0
    known = None if oracle is None else (mask_components(oracle, 1), np.asarray(_features_on(x)) > 0)
    return {
        "probe": [[float(f"{score:.4g}") for score in row] for row in scores],
        "identity_error": identity_error(kept),
        "composites": composites(own, known, active=active, key=key, settings=settings),
    }


@register_dataclass
@dataclasses.dataclass(frozen=True, eq=False)
class ComponentsForward(MaskedForward):
    """A decomposed model with one mask for each component. A component is `rank` neighbouring subcomponents of every
    matrix."""

    subcomponents: DecompositionForward
    rank: int = dataclasses.field(metadata={"static": True})

    def run(self, mask: Float[Array, "batch C"], x: Array) -> Array:
        return self.subcomponents.run(self._repeat(mask), x)

    def target(self, x: Array) -> Array:
        return self.subcomponents.target(x)

    def resampled(self, keep: Float[Array, "batch C"], x: Array, donor: Array) -> Array:
        return self.subcomponents.resampled(self._repeat(keep), x, donor)

    def _repeat(self, mask: Float[Array, "batch C"]) -> Float[Array, "batch part"]:
        model = self.subcomponents.model
        copies = sum(layer_count(model, name) for name in model.names)
        return jnp.tile(jnp.repeat(mask, self.rank, axis=-1), (1, copies))


def mask_components(model: Decomposed, rank: int, least: float = 0.05) -> MaskedFunction:
    """The components of a decomposed model as parts for the linearity tests. Δ is off, except in the target.

    Args:
      model: the decomposed model.
      rank: the number of neighbouring subcomponents in one component.
      least: a singular value counts for the rank of a component if it is at least `least` times the largest singular
        value of any component in that matrix. (No trained singular value is exactly 0.)
    """
    values = [one.values for one in spectra(model, rank, model.names).values()]
    ranks = np.sum([(one > least * max(one.max(), 1e-30)).sum(axis=1) for one in values], axis=0)
    whole = mask_decomposition(model)
    return MaskedFunction(ComponentsForward(DecompositionForward(model), rank), whole.faithfulness, ranks)


def _features_on(x: Float[Array, "batch feature"]) -> Float[Array, "batch feature"]:
    return (x != 0).astype(jnp.float32)
