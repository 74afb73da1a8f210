"""Does ablating a few latents remove one concept, and no other? TPP and SCR (SAEBench, arXiv:2503.09532).

Linear probes on the mean activation of a text tell its class. The effect of a latent on a probe w is

    effect_i = (mean of z_i over texts of the class - mean over the others) · (w·d_i)

The n latents with the largest effect are set to 0; the error of the reconstruction stays. The mean over tokens is
linear, so the mean activation after the ablation is x - Σ_i z_i d_i, with the mean latents of the text.

    TPP_n = mean over classes i of [ fall of the accuracy of probe i - mean fall of the other probes ],
            if latents of class i are ablated. In the effect, the difference of means is not below 0
    SCR_n = (A_ablated - A_biased) / (A_fair - A_biased): the accuracy that a probe, trained where two attributes always
            go together, gains on one of them, if latents of the other are ablated (by |effect|)

Both are printed with a warning. An audit (arXiv:2605.18229) finds that TPP varies by 23 % (top 50) to 39 % (top 10)
between reseeds, and that SCR has a correlation of -0.31 to -0.64 with the truth where the truth is known.

Accuracies are means of both classes' accuracies, so classes need not be balanced.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator, Sequence
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int

from jax_interp.core.errors import UserError
from jax_interp.core.logistic import Logistic, fit_logistic
from jax_interp.dictionaries.activations.select import top_k
from jax_interp.dictionaries.evaluation.benchmarks.baselines import Compared, fixed_directions
from jax_interp.dictionaries.evaluation.benchmarks.measure import (
    DICTIONARY,
    Measure,
    mean_over_reseeds,
    relative_spread,
)
from jax_interp.dictionaries.evaluation.benchmarks.pooled import Place, pooled_latents

SMALLEST_GAP = 1e-3
TOP = (2, 5, 10, 20, 50)
AUDIT = "unreliable by an audit (arXiv:2605.18229): "
TPP_WARNING = AUDIT + "it varies by 23 % (top 50) to 39 % (top 10) between reseeds"
SCR_WARNING = AUDIT + "its correlation with a known truth is -0.31 to -0.64"


@dataclasses.dataclass(frozen=True)
class PooledTexts:
    """Texts as means over their tokens, for one coder."""

    x: Float[np.ndarray, "text d"]
    """Activations."""
    z: Float[np.ndarray, "text feature"]
    """Latents."""
    directions: Float[Array, "feature d"]


Scores = dict[str, dict[int, list[float]]]
"""coder -> n -> the figure of each reseed."""


def tpp(
    pooled: Callable[[str, int], PooledTexts],
    coders: Sequence[str],
    labels: Int[np.ndarray, " text"],
    *,
    top: Sequence[int] = TOP,
    reseeds: int = 3,
    train: float = 0.7,
    seed: int = 0,
) -> Scores:
    """Targeted probe perturbation.

    Args:
      pooled: (coder, reseed) -> the texts.
      coders: the names of the coders.
      labels: the class of each text: 0, 1, ...
      top: numbers of latents to ablate.
      reseeds: random divisions into training and test texts.
      train: the fraction for training.
      seed: of the divisions.

    Raises:
      UserError: there are fewer than two classes, or a class has fewer than 10 texts.
    """
    counts = np.bincount(labels)
    if len(counts) < 2 or counts.min() < 10:
        raise UserError(f"TPP needs two or more classes with at least 10 texts each; the counts are {counts.tolist()}")
    found: Scores = {name: {n: [] for n in top} for name in coders}
    y = labels[None, :] == np.arange(len(counts))[:, None]
    for reseed in range(reseeds):
        part = _stratified(labels, train, np.random.default_rng([seed, reseed]))
        x = pooled(coders[0], reseed).x
        probes = _fit(x, y, np.broadcast_to(part, y.shape))
        clean = _accuracies(probes, x[~part], y[:, ~part])
        for name in coders:
            texts = pooled(name, reseed)
            ordered = _by_effect(texts, y, part, probes, absolute=False, most=max(top))
            for n in top:
                score = [
                    _perturbation(i, clean, _accuracies(probes, _ablated(texts, ~part, ordered[i], n), y[:, ~part]))
                    for i in range(len(y))
                ]
                found[name][n].append(float(np.mean(score)))
    return found


def scr(
    pooled: Callable[[str, int], PooledTexts],
    coders: Sequence[str],
    target: Bool[np.ndarray, " text"],
    spurious: Bool[np.ndarray, " text"],
    *,
    top: Sequence[int] = TOP,
    reseeds: int = 3,
    train: float = 0.7,
    seed: int = 0,
) -> Scores:
    """Spurious correlation removal. Of the two directions (which attribute is the spurious one), it uses that in which
    the biased probe is worse, as published.

    Args:
      pooled: (coder, reseed) -> the texts.
      coders: the names of the coders.
      target: the first attribute of each text.
      spurious: the second attribute.
      top: numbers of latents to ablate.
      reseeds: random divisions into training and test texts.
      train: the fraction for training.
      seed: of the divisions.

    Raises:
      UserError: one of the four combinations of the attributes has fewer than 10 texts.
    """
    both = np.stack([np.asarray(target, bool), np.asarray(spurious, bool)])
    cell = 2 * both[0] + both[1]
    counts = np.bincount(cell, minlength=4)
    if counts.min() < 10:
        raise UserError(f"SCR needs at least 10 texts of each of four combinations; the counts are {counts.tolist()}")
    found: Scores = {name: {n: [] for n in top} for name in coders}
    for reseed in range(reseeds):
        rng = np.random.default_rng([seed, reseed])
        equal = np.concatenate([rng.permutation(np.flatnonzero(cell == c))[: counts.min()] for c in range(4)])
        used = np.zeros(len(cell), bool)
        used[equal] = True
        part = _stratified(cell, train, rng) & used
        test = used & ~part
        x = pooled(coders[0], reseed).x
        fair = _fit(x, both, np.broadcast_to(part, both.shape))
        biased_part = part & (both[0] == both[1])
        biased = _fit(x, both, np.stack([biased_part] * 2))  # both attributes are one label there: one probe, twice
        base = _accuracies(biased, x[test], both[:, test])
        goal = _accuracies(fair, x[test], both[:, test])
        wanted = int(np.argmin(base))
        gap = goal[wanted] - base[wanted]
        for name in coders:
            texts = pooled(name, reseed)
            ordered = _by_effect(texts, both, part, fair, absolute=True, most=max(top))[1 - wanted]
            for n in top:
                after = _accuracies(biased, _ablated(texts, test, ordered, n), both[:, test])[wanted]
                found[name][n].append(float((after - base[wanted]) / gap) if gap >= SMALLEST_GAP else 0.0)
    return found


def pooled_texts(place: Place, compared: Compared, texts: Sequence[str]) -> Callable[[str, int], PooledTexts]:
    """The texts for `tpp` and `scr`, as means over tokens.

    Raises:
      UserError: a coder has no fixed directions in the space that it reads, or a text has no token.
    """
    columns = [(name, coder) for name, coders in compared.columns() for coder in coders]
    directions = [fixed_directions(coder, "ablation of concepts") for _, coder in columns]
    latents = pooled_latents(place, [coder for _, coder in columns], texts)
    x = pooled_latents(place, [compared.raw], texts)[0]
    of: dict[str, list[PooledTexts]] = {}
    for (name, _), z, rows in zip(columns, latents, directions, strict=True):
        of.setdefault(name, []).append(PooledTexts(x, z, rows))
    return lambda name, reseed: of[name][min(reseed, len(of[name]) - 1)]


def measures(name: str, scores: Scores, warning: str, meaning: str) -> Iterator[Measure]:
    """Measures of `tpp` or `scr`, with the spread that was measured here beside the published one."""
    for n in scores[DICTIONARY]:
        estimates = {coder: mean_over_reseeds(by_n[n]) for coder, by_n in scores.items()}
        spread = relative_spread(scores[DICTIONARY][n])
        yield Measure(f"{name}, top {n}", meaning, "higher", estimates, warning=warning, spread=spread)


def _stratified(labels: np.ndarray, train: float, rng: np.random.Generator) -> Bool[np.ndarray, " text"]:
    part = np.zeros(len(labels), bool)
    for label in np.unique(labels):
        members = rng.permutation(np.flatnonzero(labels == label))
        part[members[: min(max(round(train * len(members)), 1), len(members) - 1)]] = True
    return part


def _fit(x: np.ndarray, y: np.ndarray, part: np.ndarray) -> Logistic:
    """A probe for each row of `y`, on the texts of `part`, with balanced classes."""
    n = part.sum(1, keepdims=True)
    weight = np.where(y, n / (2 * np.maximum((y & part).sum(1, keepdims=True), 1)), 0) + np.where(
        ~y, n / (2 * np.maximum((~y & part).sum(1, keepdims=True), 1)), 0
    )
    copies = jnp.broadcast_to(jnp.asarray(x), (len(y), *x.shape))
    return fit_logistic(copies, jnp.asarray(y), jnp.asarray(weight * part, jnp.float32))


def _accuracies(probes: Logistic, x: np.ndarray, y: np.ndarray) -> Float[np.ndarray, " probe"]:
    scores = x @ np.asarray(probes.weight).T + np.asarray(probes.intercept)
    right = (scores.T > 0) == y
    return (right.mean(1, where=y) + right.mean(1, where=~y)) / 2


def _perturbation(i: int, clean: np.ndarray, ablated: np.ndarray) -> float:
    fall = clean - ablated
    return float(fall[i] - np.delete(fall, i).mean())


def _by_effect(
    texts: PooledTexts, y: np.ndarray, part: np.ndarray, probes: Logistic, *, absolute: bool, most: int
) -> list[Int[np.ndarray, " latent"]]:
    """For each probe, the latents with the largest effects on it that are not 0, largest first."""
    k = min(most, texts.z.shape[1])
    found = []
    for w, label in zip(probes.weight, y, strict=True):
        arrays = (jnp.asarray(a) for a in (texts.z, label & part, ~label & part))
        values, indices = _effects(*arrays, texts.directions, w, k=k, absolute=absolute)
        found.append(np.asarray(indices)[np.asarray(values) != 0])
    return found


@partial(jax.jit, static_argnames=("k", "absolute"))
def _effects(
    z: Array, positive: Array, negative: Array, directions: Array, w: Array, *, k: int, absolute: bool
) -> tuple[Array, Array]:
    weight = lambda rows: rows.astype(z.dtype) / jnp.sum(rows).astype(z.dtype)
    exact = jax.lax.Precision.HIGHEST
    difference = jnp.matmul(weight(positive) - weight(negative), z, precision=exact)
    difference = difference if absolute else jnp.maximum(difference, 0)
    effect = difference * jnp.matmul(directions, w.astype(directions.dtype), precision=exact).astype(z.dtype)
    effect = jnp.abs(effect) if absolute else effect
    values, indices = top_k(effect[None, :], k)
    return values[0], indices[0]


def _ablated(texts: PooledTexts, rows: np.ndarray, ordered: np.ndarray, n: int) -> Float[np.ndarray, "text d"]:
    chosen = ordered[:n]
    return texts.x[rows] - texts.z[rows][:, chosen] @ np.asarray(texts.directions[chosen], np.float32)
