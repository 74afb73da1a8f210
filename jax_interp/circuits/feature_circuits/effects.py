"""The effect of each feature and of each error on a metric (Marks et al. 2024, arXiv:2403.19647, §3.1).

The effect of a node is m(clean | do(node = its ablated value)) - m(clean). Three methods:

    attribution   gradient × difference at the clean run. One forward and one backward pass for all nodes
    integrated    the gradient is the mean over `steps` points between the clean and the ablated value of one site; the
                  other sites are not ablated. The effects of all nodes of a site then add up to the effect of the whole
                  value, up to the error of the sum over steps
    exact         one run for each latent of each token that the ablation changes

A gradient passes a value unchanged: the latents and the error of a site both write into the value itself, so the
latents of one site do not hide those of earlier sites. Where the model is linear after a site, the three methods agree.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Mapping
from functools import partial
from typing import Literal

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

from jax_interp.circuits.contrast import Contrast, measure
from jax_interp.circuits.feature_circuits.exact import exact_effects
from jax_interp.circuits.feature_circuits.sites import (
    ERROR,
    Ablation,
    Sites,
    change,
    clean_run,
    contracted,
    corrupted_values,
    feature_sites,
    layer_indices,
    pulled_back,
    with_value,
)
from jax_interp.core.errors import UserError
from jax_interp.core.labelled import Labelled
from jax_interp.dictionaries.sparse_coder import EncoderDecoder
from jax_interp.surgery import edit
from jax_interp.surgery.contract import Model
from jax_interp.surgery.value_tokens import wide
from jax_interp.surgery.verbs import without_reads

Method = Literal["attribution", "integrated", "exact"]
Points = Literal["midpoint", "clean", "ablated"]
"""Where the gradients of `integrated` are taken, at α = 0 (clean) to 1 (ablated): midpoint (k + ½)/N; clean k/N, as the
code of the paper does; ablated (k + 1)/N, as the paper says."""
Positions = Literal["sum", "each"]
"""sum: a feature is one node, and its effects at all positions are added. each: it is one node at each position."""


@dataclasses.dataclass(frozen=True)
class EffectsConfig:
    """How effects are computed.

    Args:
      method: attribution, integrated or exact.
      ablation: patch or zero. With zero, the corrupted prompts are not used.
      positions: sum or each.
      steps: points of `integrated`.
      points: where they lie.
      batch: prompts in one program. Latents of all tokens of so many prompts are in memory, one site at a time.
      rows: runs of `exact` in one program.
    """

    method: Method = "integrated"
    ablation: Ablation = "patch"
    positions: Positions = "sum"
    steps: int = 10
    points: Points = "midpoint"
    batch: int = 16
    rows: int = 64

    def __post_init__(self) -> None:
        choices = {
            "method": ("attribution", "integrated", "exact"),
            "ablation": ("patch", "zero"),
            "positions": ("sum", "each"),
            "points": ("midpoint", "clean", "ablated"),
        }
        for name, allowed in choices.items():
            if getattr(self, name) not in allowed:
                raise UserError(f"{name}={getattr(self, name)!r}: choose {', '.join(allowed)}")
        for name in ("steps", "batch", "rows"):
            if getattr(self, name) < 1:
                raise UserError(f"{name}={getattr(self, name)} must be at least 1")


@dataclasses.dataclass(frozen=True)
class FeatureEffects:
    """The effect of every node: the mean over prompts, and the standard deviation over prompts.

    Arrays are by site. They are [feature] for latents and [] for errors, with a leading axis `pos` if positions are
    kept apart.
    """

    addresses: tuple[str, ...]
    latents: tuple[Float[np.ndarray, "*pos feature"], ...]
    latents_spread: tuple[Float[np.ndarray, "*pos feature"], ...]
    errors: tuple[Float[np.ndarray, "*pos"], ...]
    errors_spread: tuple[Float[np.ndarray, "*pos"], ...]
    whole: Float[np.ndarray, "site prompt"]
    """The effect of ablating the whole value, on each prompt: m(clean | do(value = its ablated value)) - m(clean)."""
    clean: Float[np.ndarray, " prompt"]
    """The metric of each clean prompt."""
    config: EffectsConfig

    @property
    def prompts(self) -> int:
        return len(self.clean)

    def accounting(self) -> Labelled:
        """What the nodes of each site add up to, beside the effect of ablating the whole value: means over prompts.

        Axes: site, and part: features, error, sum, whole. `sum` and `whole` differ by what a linear approximation
        misses; for exact effects, by the interactions between nodes.
        """
        rows = [
            (float(f.sum()), float(e.sum()), float(f.sum() + e.sum()), float(w.mean()))
            for f, e, w in zip(self.latents, self.errors, self.whole, strict=True)
        ]
        parts = ("features", "error", "sum", "whole")
        return Labelled(np.asarray(rows), {"site": self.addresses, "part": parts}, "effect on the metric")

    def largest(self, n: int = 20) -> list[tuple[str, int | None, int | None, float]]:
        """The n nodes of largest absolute effect: (address, feature, position, effect).

        The feature is None for the error, the position is None for the sum over positions.
        """
        table = node_table(self)
        order = np.argsort(-np.abs(table["effect"]), kind="stable")[:n]
        name = lambda i, key: None if table[key][i] < 0 else int(table[key][i])
        return [
            (self.addresses[table["site"][i]], name(i, "feature"), name(i, "pos"), float(table["effect"][i]))
            for i in order
        ]


def feature_effects(
    model: Model,
    contrast: Contrast,
    dictionaries: Mapping[str, EncoderDecoder],
    config: EffectsConfig = EffectsConfig(),
) -> FeatureEffects:
    """The effect of ablating each feature, and each error, on the metric.

    Args:
      model: a model, under surgery or not.
      contrast: the prompts and the metric. Effects are on the clean prompts.
      dictionaries: address -> dictionary, such as {"blocks.0.mlp_out": sae}. `Identity` gives the neuron basis.
      config: the method.

    Returns:
      The effects. A negative effect says that the metric falls if the node is ablated.

    Raises:
      UserError: a dictionary does not fit its value, or an effect is not finite.

    Example:
        effects = feature_effects(model, contrast, {f"blocks.{i}.mlp_out": sae for i, sae in enumerate(saes)})
        effects.largest(10)
        effects.accounting()
    """
    sites = feature_sites(model, contrast, dictionaries)
    plain = without_reads(model)
    sums, whole, clean = None, [], []
    for part in batches(contrast, config.batch):
        if config.method == "exact":
            each = config.positions == "each"
            found, here, base = exact_effects(plain, part, sites, config.ablation, each, config.rows)
        else:
            found, here, base = _by_gradient(plain, part, sites, config)
        moments = [(np.asarray(a, np.float64), np.asarray(b, np.float64)) for a, b in found]
        sums = moments if sums is None else [(a + c, b + d) for (a, b), (c, d) in zip(sums, moments, strict=True)]
        whole.append(np.asarray(here))
        clean.append(np.asarray(base))
    assert sums is not None
    n = contrast.clean.shape[0]
    mean_spread = [mean_and_spread(total, squares, n) for total, squares in sums]
    latents, errors = mean_spread[: len(sites)], mean_spread[len(sites) :]
    for address, (of_latents, _), (of_error, _) in zip(sites.addresses, latents, errors, strict=True):
        if not (np.isfinite(of_latents).all() and np.isfinite(of_error).all()):
            raise UserError(
                f"effects at {address!r} are not finite: look for NaN in the model, metric and dictionaries"
            )
    return FeatureEffects(
        sites.addresses,
        tuple(m for m, _ in latents),
        tuple(s for _, s in latents),
        tuple(m for m, _ in errors),
        tuple(s for _, s in errors),
        np.concatenate(whole, axis=1),
        np.concatenate(clean),
        config,
    )


def node_table(effects: FeatureEffects) -> dict[str, np.ndarray]:
    """All nodes as columns: site, feature (-1: the error), pos (-1: all positions), effect, spread."""
    columns: dict[str, list[np.ndarray]] = {name: [] for name in ("site", "feature", "pos", "effect", "spread")}
    for i in range(len(effects.addresses)):
        for of_errors, (values, spread) in enumerate(
            [(effects.latents[i], effects.latents_spread[i]), (effects.errors[i], effects.errors_spread[i])]
        ):
            rows = values[..., None] if of_errors else values
            place = np.indices(rows.shape)
            columns["site"].append(np.full(rows.size, i))
            columns["feature"].append(np.full(rows.size, ERROR) if of_errors else place[-1].reshape(-1))
            columns["pos"].append(place[0].reshape(-1) if rows.ndim == 2 else np.full(rows.size, -1))
            columns["effect"].append(rows.reshape(-1))
            columns["spread"].append(spread.reshape(-1))
    return {name: np.concatenate(parts) for name, parts in columns.items()}


def mean_and_spread(total: np.ndarray, squares: np.ndarray, n: int) -> tuple[np.ndarray, np.ndarray]:
    """Mean and standard deviation (n - 1) from Σ x and Σ x². The deviation of one value is NaN."""
    mean = total / n
    if n < 2:
        return mean, np.full_like(mean, np.nan)
    return mean, np.sqrt(np.maximum(squares - n * mean * mean, 0) / (n - 1))


def batches(contrast: Contrast, size: int) -> Iterator[Contrast]:
    """The contrast in parts of at most `size` prompts."""
    for start in range(0, contrast.clean.shape[0], size):
        yield contrast.rows(slice(start, start + size))


@partial(jax.jit, static_argnames="config")
def _by_gradient(
    model: Model, contrast: Contrast, sites: Sites, config: EffectsConfig
) -> tuple[list[tuple[Array, Array]], Float[Array, "site prompt"], Float[Array, " prompt"]]:
    """The effects of some prompts: ((Σ, Σ of squares) of each site's latents, then errors), whole values, metric."""
    base, values, gradients = clean_run(model, contrast, sites)
    others = corrupted_values(model, contrast, sites, config.ablation)
    changes = [change(c, x, o, contrast.mask) for c, x, o in zip(sites.coders, values, others, strict=True)]
    ends: dict[int, Array] = {}
    for address, numbers in sites.runs:
        along = partial(_along_path, model, contrast, config, address)
        if len(numbers) == 1:
            mean_gradient, end = along(values[numbers[0]], changes[numbers[0]].value, None)
            found = [(mean_gradient, end)]
        else:
            stacked = (jnp.stack([values[i] for i in numbers]), jnp.stack([changes[i].value for i in numbers]))
            rows = jax.lax.map(lambda of, along=along: along(*of), (*stacked, layer_indices(address)))
            found = [jax.tree.map(lambda leaf, k=k: leaf[k], rows) for k in range(len(numbers))]
        for i, (mean_gradient, end) in zip(numbers, found, strict=True):
            ends[i] = end - base
            gradients[i] = gradients[i] if mean_gradient is None else mean_gradient
    latents, errors = [], []
    for coder, x, g, moved in zip(sites.coders, values, gradients, changes, strict=True):
        latents.append(_moments(pulled_back(coder, x, g) * moved.latents, config.positions))
        errors.append(_moments(contracted(g, moved.error), config.positions))
    return latents + errors, jnp.stack([ends[i] for i in range(len(sites))]), base


def _along_path(
    model: Model,
    contrast: Contrast,
    config: EffectsConfig,
    address: str,
    x: Array,
    moved: Array,
    layer: Int[Array, ""] | None,
) -> tuple[Array | None, Float[Array, " prompt"]]:
    """(the mean gradient between the value and its ablated value, the metric at the ablated value)."""
    m = lambda v: measure(edit(model, with_value(address, v, layer)), contrast.clean, contrast)
    end = m(wide(x) + moved)
    if config.method != "integrated":
        return None, end
    shift = {"midpoint": 0.5, "clean": 0.0, "ablated": 1.0}[config.points]
    alphas = (jnp.arange(config.steps, dtype=moved.dtype) + shift) / config.steps

    def add(total: Array, alpha: Array) -> tuple[Array, None]:
        return total + jax.grad(lambda v: jnp.sum(m(v)))(wide(x) + alpha * moved), None

    total, _ = jax.lax.scan(add, jnp.zeros_like(moved), alphas)
    return total / config.steps, end


def _moments(effects: Array, positions: Positions) -> tuple[Array, Array]:
    """(Σ, Σ of squares) over prompts, after the sum over positions if these are not kept apart."""
    effects = jnp.sum(effects, axis=1) if positions == "sum" else effects
    return jnp.sum(effects, axis=0), jnp.sum(effects * effects, axis=0)
