"""How much of a behaviour a feature circuit carries (Marks et al. 2024, arXiv:2403.19647, §4 and appendix).

    faithfulness(C) = (m(C) - m(∅)) / (m(M) - m(∅))       1: the circuit alone has the metric of the model
    completeness(C) = faithfulness of all nodes outside C   0: nothing of the behaviour is outside the circuit

m(C) is the metric if every latent and every error outside C has its ablated value, m(∅) if all have it, m(M) the metric
of the model. A figure without its controls says little, so a curve has random circuits of equal size and, if they are
given, circuits of neurons beside it.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from functools import partial
from typing import Literal

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float

from jax_interp.circuits.contrast import Contrast, measure
from jax_interp.circuits.feature_circuits.circuit import FeatureCircuit, random_nodes, select_nodes
from jax_interp.circuits.feature_circuits.edges import matching_sites
from jax_interp.circuits.feature_circuits.effects import FeatureEffects, batches
from jax_interp.circuits.feature_circuits.sites import Sites, latents_of, run_with_values, written
from jax_interp.core.errors import UserError
from jax_interp.core.labelled import Labelled
from jax_interp.core.pytrees import register_dataclass
from jax_interp.dictionaries.sparse_coder import EncoderDecoder, SparseCoder
from jax_interp.surgery import at, edit
from jax_interp.surgery.contract import Model
from jax_interp.surgery.value_tokens import wide
from jax_interp.surgery.verbs import without_reads

Outside = Literal["mean", "zero", "patch"]
"""What nodes outside a circuit have: their mean over the corrupted prompts at this position (the choice of the paper),
0, or their value in the corrupted prompt."""
Errors = Literal["circuit", "keep", "ablate"]
"""Errors: only those of the circuit are kept; all are kept; all are ablated."""
REPLICATES = 1000


@register_dataclass
@dataclasses.dataclass(frozen=True, eq=False)
class KeepFeatures:
    """An edit: latents and the error of a value keep their values where they are kept, and have others elsewhere.

    A value of which all is kept has the same bits as before.

    Args:
      coder: the dictionary of the value.
      keep: which latents are kept. All arrays are broadcast to those of the value.
      keep_error: for which tokens the error is kept.
      latents: the latents that are not kept.
      error: the error where it is not kept.
    """

    coder: SparseCoder
    keep: Bool[Array, "... feature"]
    keep_error: Bool[Array, "..."]
    latents: Float[Array, "..."]
    error: Float[Array, "..."]

    def __call__(self, x: Float[Array, "batch pos ..."]) -> Float[Array, "batch pos ..."]:
        before = latents_of(self.coder, x)
        x_hat = written(self.coder, x, before)
        like = lambda a, b: jnp.broadcast_to(a, b.shape).astype(b.dtype)
        after = jnp.where(jnp.broadcast_to(self.keep, before.shape), before, like(self.latents, before))
        kept = jnp.broadcast_to(self.keep_error, x.shape[:2]).reshape(*x.shape[:2], *(1,) * (x.ndim - 2))
        x_wide = wide(x)
        error = jnp.where(kept, jnp.zeros_like(x_wide), like(self.error, x_wide) - (x_wide - x_hat))
        return x_wide + (written(self.coder, x, after) - x_hat) + error


@dataclasses.dataclass(frozen=True)
class EvaluationConfig:
    """How a circuit is run.

    Args:
      outside: what nodes outside the circuit have: mean, zero or patch.
      errors: circuit, keep or ablate.
      batch: prompts in one program.
    """

    outside: Outside = "mean"
    errors: Errors = "circuit"
    batch: int = 32

    def __post_init__(self) -> None:
        if self.outside not in ("mean", "zero", "patch"):
            raise UserError(f"outside={self.outside!r}: choose mean, zero or patch")
        if self.errors not in ("circuit", "keep", "ablate"):
            raise UserError(f"errors={self.errors!r}: choose circuit, keep or ablate")
        if self.batch < 1:
            raise UserError(f"batch={self.batch} must be at least 1")


def circuit_metrics(
    model: Model,
    contrast: Contrast,
    dictionaries: Mapping[str, EncoderDecoder],
    circuits: Sequence[FeatureCircuit],
    config: EvaluationConfig = EvaluationConfig(),
    *,
    complement: bool = False,
) -> Labelled:
    """The metric of each clean prompt if only the nodes of a circuit keep their values.

    Args:
      model: a model, under surgery or not.
      contrast: the prompts and the metric. Give prompts on which the circuit was not found.
      dictionaries: the dictionaries with which the circuits were found.
      circuits: one or more circuits. All are run by one program.
      config: what the other nodes have.
      complement: run the nodes outside the circuits instead. `errors="keep"` and `"ablate"` stay what they are.

    Returns:
      Axes: circuit (the number of its nodes), prompt.

    Raises:
      UserError: a circuit is of other dictionaries, there is none, or a metric is not finite.
    """
    if not circuits:
        raise UserError("there is no circuit to run")
    if len({circuit.positions for circuit in circuits}) > 1:
        raise UserError("some circuits keep positions apart and others do not: run them separately")
    sites = matching_sites(model, contrast, dictionaries, *circuits)
    length = contrast.clean.shape[1] if circuits[0].positions == "each" else 1
    masks = [circuit.keep(length) for circuit in circuits]
    keep = [np.stack(of_site) for of_site in zip(*(latents for latents, _ in masks), strict=True)]
    keep_error = [np.stack(of_site) for of_site in zip(*(errors for _, errors in masks), strict=True)]
    if complement:
        keep, keep_error = [~k for k in keep], [~k for k in keep_error]
    if config.errors != "circuit":
        keep_error = [np.full_like(k, config.errors == "keep") for k in keep_error]
    plain = without_reads(model)
    ablated = _means(plain, contrast, sites, config) if config.outside == "mean" else None
    parts = [
        np.asarray(_metrics(plain, part, sites, keep, keep_error, ablated, outside=config.outside))
        for part in batches(contrast, config.batch)
    ]
    values = np.concatenate(parts, axis=1)
    if not np.isfinite(values).all():
        raise UserError("the metric of a circuit is not finite: look for NaN in the model and the dictionaries")
    axes = {"circuit": [circuit.n_nodes for circuit in circuits], "prompt": range(values.shape[1])}
    return Labelled(values, axes, "metric")


@dataclasses.dataclass(frozen=True)
class FaithfulnessCurve:
    """The metric of circuits of several sizes in several bases, and what follows from it.

    Args:
      metric: axes basis, n (nodes), part (circuit, complement), prompt.
      empty: the metric with all nodes ablated; axes basis, prompt.
      clean: the metric of the model; axis prompt.
    """

    metric: Labelled
    empty: Labelled
    clean: Labelled

    def curve(self, *, seed: int = 0) -> Labelled:
        """Faithfulness and completeness, with intervals of 95 % from a bootstrap over prompts.

        The quotient is of means over prompts: that of single prompts has no finite variance.

        Returns:
          Axes: basis, n, quantity (faithfulness, completeness), estimate (value, low, high). NaN where the metric of
          the model equals that of the empty circuit.
        """
        n = self.clean.shape[0]
        draws = np.random.default_rng(seed).integers(n, size=(REPLICATES, n))
        weights = np.stack([np.bincount(draw, minlength=n) / n for draw in draws])
        ratio = partial(_ratio, self.metric.values, self.empty.values[:, None, None], self.clean.values)
        value = ratio(np.full((1, n), 1 / n))[0]
        low, high = np.quantile(ratio(weights), [0.025, 0.975], axis=0)
        axes = {"basis": self.metric.axes["basis"], "n": self.metric.axes["n"]}
        axes |= {"quantity": ("faithfulness", "completeness"), "estimate": ("value", "low", "high")}
        return Labelled(np.stack([value, low, high], axis=-1), axes, "share of the metric")


def faithfulness_curve(
    model: Model,
    contrast: Contrast,
    bases: Mapping[str, tuple[Mapping[str, EncoderDecoder], FeatureEffects]],
    sizes: Sequence[int],
    config: EvaluationConfig = EvaluationConfig(),
    *,
    random: int = 3,
    seed: int = 0,
) -> FaithfulnessCurve:
    """Run circuits of the nodes with the largest effects, and random circuits of equal size.

    Args:
      model: a model, under surgery or not.
      contrast: the prompts to measure on. Give prompts on which the effects were not computed.
      bases: name -> (dictionaries, effects of their nodes), such as "features" and "neurons" (`Identity`).
      sizes: numbers of nodes. A basis in which fewer nodes have an effect has all of them.
      config: what nodes outside have.
      random: random circuits of each size and basis, drawn from the nodes that have an effect.
      seed: of these.

    Returns:
      The metrics. The bases are those of `bases`, and for each "random NAME 1", "random NAME 2", ...

    Example:
        neurons = {address: Identity() for address in saes}
        bases = {"features": (saes, effects), "neurons": (neurons, feature_effects(model, train, neurons))}
        curve = faithfulness_curve(model, test, bases, (1, 3, 10, 30, 100)).curve()
    """
    if not sizes or min(sizes) < 1 or not bases:
        raise UserError(f"sizes={tuple(sizes)}: give numbers of nodes from 1, and at least one basis")
    rng = np.random.default_rng(seed)
    names, metric, empty = [], [], []
    clean = None
    for name, (dictionaries, effects) in bases.items():
        ranked = [select_nodes(effects, n=n) for n in sizes]
        rows = [ranked, *([random_nodes(effects, c.n_nodes, rng) for c in ranked] for _ in range(random))]
        names += [name, *(f"random {name} {i + 1}" for i in range(random))]
        none = select_nodes(effects, n=0)
        run = partial(circuit_metrics, model, contrast, dictionaries, config=config)
        inside = run([none, *(c for row in rows for c in row)]).values
        outside = run([c for row in rows for c in row], complement=True).values
        shape = (len(rows), len(sizes), -1)
        metric.append(np.stack([inside[1:].reshape(shape), outside.reshape(shape)], axis=2))
        empty.append(np.broadcast_to(inside[0], (len(rows), inside.shape[1])))
        clean = _clean_metric(model, contrast, config.batch) if clean is None else clean
    assert clean is not None
    prompts = range(len(clean))
    axes = {"basis": names, "n": sizes, "part": ("circuit", "complement"), "prompt": prompts}
    return FaithfulnessCurve(
        Labelled(np.concatenate(metric), axes, "metric"),
        Labelled(np.concatenate(empty), {"basis": names, "prompt": prompts}, "metric of no node"),
        Labelled(clean, {"prompt": prompts}, "metric of the model"),
    )


def _ratio(metric: np.ndarray, empty: np.ndarray, clean: np.ndarray, weights: np.ndarray) -> np.ndarray:
    """(m - m(∅)) / (m(M) - m(∅)) of weighted means over prompts: [replicate, ...]."""
    mean = lambda a: np.moveaxis(a @ weights.T, -1, 0)
    span = mean(clean).reshape(-1, *(1,) * (empty.ndim - 1)) - mean(empty)
    return (mean(metric) - mean(empty)) / np.where(span == 0, np.nan, span)


def _clean_metric(model: Model, contrast: Contrast, batch: int) -> np.ndarray:
    plain = without_reads(model)
    return np.concatenate([np.asarray(_measured(plain, part)) for part in batches(contrast, batch)])


@jax.jit
def _measured(model: Model, contrast: Contrast) -> Float[Array, " prompt"]:
    return measure(model, contrast.clean, contrast)


Ablated = list[tuple[Float[Array, "*prompt pos feature"], Float[Array, "..."]]]
"""(latents, error) of each site."""


def _means(model: Model, contrast: Contrast, sites: Sites, config: EvaluationConfig) -> Ablated:
    """The mean over the corrupted prompts at each position. Padding is no part of it."""
    total = None
    for part in batches(contrast, config.batch):
        sums = _sums(model, part, sites)
        total = sums if total is None else jax.tree.map(jnp.add, total, sums)
    assert total is not None
    parts, count = total
    count = jnp.maximum(count, 1)
    return [(z / count[:, None].astype(z.dtype), _per_token(e, count)) for z, e in parts]


def _per_token(error: Array, count: Array) -> Array:
    return error / count.reshape(-1, *(1,) * (error.ndim - 1)).astype(error.dtype)


@jax.jit
def _sums(model: Model, contrast: Contrast, sites: Sites) -> tuple[Ablated, Float[Array, " pos"]]:
    real = jnp.ones(contrast.clean.shape, bool) if contrast.mask is None else contrast.mask
    total = lambda a: jnp.sum(jnp.where(real.reshape(*real.shape, *(1,) * (a.ndim - 2)), a, jnp.zeros_like(a)), axis=0)
    ablated = _corrupted_parts(model, contrast, sites)
    return [(total(z), total(e)) for z, e in ablated], jnp.sum(real, axis=0).astype(jnp.float32)


def _corrupted_parts(model: Model, contrast: Contrast, sites: Sites) -> Ablated:
    values = run_with_values(model, contrast.corrupted, contrast, sites)[1]
    latents = [latents_of(coder, x) for coder, x in zip(sites.coders, values, strict=True)]
    return [(z, wide(x) - written(coder, x, z)) for coder, x, z in zip(sites.coders, values, latents, strict=True)]


@partial(jax.jit, static_argnames="outside")
def _metrics(
    model: Model,
    contrast: Contrast,
    sites: Sites,
    keep: list[Bool[Array, "circuit pos feature"]],
    keep_error: list[Bool[Array, "circuit pos"]],
    ablated: Ablated | None,
    *,
    outside: Outside,
) -> Float[Array, "circuit prompt"]:
    if outside == "patch":
        ablated = _corrupted_parts(model, contrast, sites)
    if ablated is None:
        ablated = [(jnp.zeros(()), jnp.zeros(()))] * len(sites)

    def one(kept):
        edits = [
            at(address, KeepFeatures(coder, k, k_error, *values))
            for address, coder, k, k_error, values in zip(sites.addresses, sites.coders, *kept, ablated, strict=True)
        ]
        return measure(edit(model, *edits), contrast.clean, contrast)

    return jax.lax.map(one, (keep, keep_error))
