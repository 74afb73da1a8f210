"""Placebo controls of an alignment: what the same procedure reaches where there is nothing to find.

    table = controlled_alignment(model, train, test, Location("blocks.1.resid_post", "x"), AlignmentConfig(DAS(1)))

An alignment is a finding only where it is above all of these (Makelov et al. 2023, arXiv:2311.17030; Sutter et al.
2025, arXiv:2507.08802):

    nothing              the base as it is: right wherever the interchange keeps the answer
    random features      a random subspace of the same dimension, or a random mask of the same size
    shuffled labels      features that are learned from answers that are permuted over the training pairs
    untrained model      the same training in a model whose weights are permuted
    whole value          everything at this place is exchanged. It says whether the variable is here at all
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Key

from jax_interp.circuits.causal_variables.accuracy import InterchangeResult, interchange_accuracy, share
from jax_interp.circuits.causal_variables.align import AlignmentConfig, align
from jax_interp.circuits.causal_variables.features import Coordinates, Features, Latents, Subspace, Whole
from jax_interp.circuits.causal_variables.interchange import Location
from jax_interp.circuits.causal_variables.interchange_data import InterchangeData
from jax_interp.circuits.causal_variables.methods import Given
from jax_interp.core.errors import UserError
from jax_interp.core.labelled import Labelled
from jax_interp.surgery import Model

FIGURES = ("IIA", "low", "high", "std over seeds", "IIA changed", "IIA kept", "log-probability", "logit difference")
"""The columns of a table: the accuracy with Wilson's interval over test pairs, and its spread over seeds; the accuracy
where the interchange changes the answer and where it keeps it; the means of the other two figures of a result."""


def controlled_alignment(
    model: Model,
    train: InterchangeData,
    test: InterchangeData,
    locations: Sequence[Location] | Location,
    config: AlignmentConfig,
    *,
    basis: Given = None,
    seeds: int = 3,
    untrained: Model | None = None,
) -> Labelled:
    """Learn features, and measure them beside their controls, on the same test pairs.

    Args:
      model: the model.
      train: the training pairs.
      test: the test pairs.
      locations: for each source, where its value is exchanged.
      config: the method and the training.
      basis: as in `align`.
      seeds: how often each row with randomness is repeated.
      untrained: the model before its training. None: `permuted_weights(model)`, another one for each seed.

    Returns:
      A table [intervention, figure]; the figures are `FIGURES`. Means over seeds.

    Raises:
      UserError: as in `align`.
    """
    if seeds < 1:
        raise UserError(f"seeds={seeds}: give at least 1")
    places = [locations] if isinstance(locations, Location) else list(locations)
    rows: dict[str, list[InterchangeResult]] = {}

    def measure(row: str, model: Model, features: Sequence[Features]) -> None:
        rows.setdefault(row, []).append(interchange_accuracy(model, test, places, features))

    for seed in range(config.seed, config.seed + seeds):
        of_seed = dataclasses.replace(config, seed=seed)
        learned = align(model, train, places, of_seed, basis=basis).features
        measure("aligned", model, learned)
        random = [
            random_like(one, key) for one, key in zip(learned, jax.random.split(jax.random.key(seed), len(places)))
        ]
        measure("random features", model, random)
        shuffled = shuffled_answers(train, seed)
        measure("shuffled labels", model, align(model, shuffled, places, of_seed, basis=basis).features)
        other = permuted_weights(model, jax.random.key(seed)) if untrained is None else untrained
        measure("untrained model", other, align(other, train, places, of_seed, basis=basis).features)
        if seed == config.seed:
            measure("nothing", model, [_nothing(one) for one in learned])
            measure("whole value", model, [Whole() for _ in places])
    table = np.stack([_figures(results) for results in rows.values()])
    return Labelled(table, {"intervention": list(rows), "figure": FIGURES}, "interchange interventions")


def random_like(features: Features, key: Key[Array, ""]) -> Features:
    """A random subspace of the same dimension, or a random mask of the same size. `Whole` stays as it is."""
    if isinstance(features, Subspace):
        d, k = features.basis.shape
        chosen = k if features.mask is None else int(jnp.sum(features.mask > 0.5))
        return Subspace(jnp.linalg.qr(jax.random.normal(key, (d, max(chosen, 1))))[0][:, :chosen])
    if isinstance(features, Coordinates | Latents):
        return dataclasses.replace(features, mask=jax.random.permutation(key, features.mask))
    return features


def shuffled_answers(data: InterchangeData, seed: int) -> InterchangeData:
    """The data with its counterfactual answers permuted over the pairs. Bases and sources stay."""
    order = np.random.default_rng(seed).permutation(len(data))
    return dataclasses.replace(data, target=data.target[order])


def permuted_weights(model: Model, key: Key[Array, ""]) -> Any:
    """A model without its mechanism: the entries of each floating-point array are permuted at random.

    Each array keeps its distribution of weights. Arrays that are constant, such as the scales of fresh norms, stay.
    """
    leaves, structure = jax.tree.flatten(model)
    keys = jax.random.split(key, len(leaves))

    def permuted(leaf: Any, key: Array) -> Any:
        if not isinstance(leaf, jax.Array | np.ndarray) or not jnp.issubdtype(leaf.dtype, jnp.floating):
            return leaf
        return jax.random.permutation(key, jnp.asarray(leaf).reshape(-1)).reshape(leaf.shape)

    return jax.tree.unflatten(structure, [permuted(leaf, key) for leaf, key in zip(leaves, keys)])


def _nothing(features: Features) -> Features:
    """Features that exchange nothing, for values of any width."""
    if isinstance(features, Subspace):
        return Subspace(features.basis, jnp.zeros(features.basis.shape[1]))
    assert isinstance(features, Coordinates | Latents)
    return dataclasses.replace(features, mask=jnp.zeros_like(features.mask))


def _figures(results: Sequence[InterchangeResult]) -> np.ndarray:
    """One row of the table. The interval is that of a share of the test pairs: more seeds do not make it narrower."""
    mean = lambda of: float(np.mean([of(one) for one in results]))
    iia = [one.accuracy.value for one in results]
    n = len(results[0].correct)
    interval = share(np.arange(n) < round(np.mean(iia) * n))
    spread = float(np.std(iia, ddof=1)) if len(iia) > 1 else float("nan")
    return np.array([
        mean(lambda one: one.accuracy.value), interval.low, interval.high, spread,
        mean(lambda one: one.where_changed.accuracy.value), mean(lambda one: one.where_kept.accuracy.value),
        mean(lambda one: one.log_probability.mean()), mean(lambda one: one.logit_difference.mean()),
    ])  # fmt: skip
