"""Fits in one layout: of the probe itself, on shuffled labels, and on shuffled coordinates.

`evaluate_probes` fits all of them in the same way, and gets `Scores` of each.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Bool, Float, Int

from jax_interp.core.errors import UserError
from jax_interp.probes.baselines import shuffled_within
from jax_interp.probes.fit import AXES, FittedProbes, fit_probes
from jax_interp.probes.gather import Sequences, Vectors, gather, gather_tokens
from jax_interp.probes.kind import Kind
from jax_interp.probes.labelled_tokens import LabelledTokens
from jax_interp.probes.splits import Split
from jax_interp.probes.token_rules import TokenRule
from jax_interp.probes.within_class_shuffle import shuffle_within_classes
from jax_interp.surgery import Model

Activations = tuple[Vectors | Sequences, ...]
"""The activations of one set: one `Vectors` with all token rules, or one `Sequences` for each rule."""


@dataclasses.dataclass(frozen=True)
class Reading:
    """What is read of each set.

    Args:
      at: addresses.
      rules: token rules.
      tokens: whether each token is kept, for kinds that read sequences.
      batch: the number of examples in one forward pass.
    """

    at: tuple[str, ...]
    rules: tuple[TokenRule, ...]
    tokens: bool
    batch: int

    def of(self, model: Model, data: LabelledTokens) -> Activations:
        """The activations of one set."""
        if not self.tokens:
            return (gather(model, data, self.at, self.rules, batch=self.batch),)
        return tuple(gather_tokens(model, data, self.at, rule, batch=self.batch) for rule in self.rules)


@dataclasses.dataclass(frozen=True)
class Fitting:
    """How probes are fitted, everywhere in one report.

    Args:
      kind: the kind.
      seeds: the seeds of the fit.
      at_once: the number of sites that are fitted side by side.
    """

    kind: Kind
    seeds: tuple[int, ...]
    at_once: int

    def __call__(self, on: Activations, train: Bool[np.ndarray, "split example"], **labels: np.ndarray) -> FittedProbes:
        """Fit on all rules. Probes that read sequences are fitted rule by rule and joined."""
        fits = [
            fit_probes(self.kind, one, train=train, labels=labels or None, seeds=self.seeds, at_once=self.at_once)
            for one in on
        ]
        rules = tuple(rule for fit in fits for rule in fit.axes["rule"])
        probes = jax.tree.map(lambda *arrays: jnp.concatenate(arrays, axis=1), *[fit.probes for fit in fits])
        return dataclasses.replace(fits[0], probes=probes, axes={**fits[0].axes, "rule": rules})


@dataclasses.dataclass(frozen=True, eq=False)
class Scores:
    """The scores of fitted probes on one set.

    Args:
      values: the scores.
      thresholds: the threshold of each probe.
    """

    values: Float[np.ndarray, "site rule labels split strength seed example"]
    thresholds: Float[np.ndarray, "site rule labels split strength seed"]

    @property
    def positive(self) -> Bool[np.ndarray, "site rule labels split strength seed example"]:
        """Whether each score is above the threshold of its probe."""
        return self.values > self.thresholds[..., None]


def scores_of(fitted: FittedProbes, on: Activations) -> Scores:
    """The scores of all probes on one set."""
    values = (
        [fitted.scores(one).values for one in on]
        if len(on) == 1
        else [fitted.sel(rule=str(one.rule)).scores(one).values for one in on if isinstance(one, Sequences)]
    )
    return Scores(np.concatenate(values, axis=1), np.asarray(fitted.probes.threshold))


def shuffled_labels(
    fit: Fitting, on: Activations, split: Split, draws: int
) -> Iterator[tuple[int, Scores, Int[np.ndarray, "draw example"]]]:
    """Probes on labels that were shuffled within the training part: (number of the split, scores, the labels used).

    Labels of tokens are shuffled among the labelled tokens of the training part.
    """
    data = on[0].data
    for number, train in enumerate(split.train):
        seeds = [1000 * number + draw for draw in range(draws)]
        labels = [shuffled_within(data.labels, train, seed) for seed in seeds]
        if not isinstance(on[0], Sequences) or data.token_labels is None:
            fitted = fit(on, train[None], **{f"shuffle {draw}": of for draw, of in enumerate(labels)})
            yield number, scores_of(fitted, on), np.stack(labels)
            continue
        found = []
        for seed, of in zip(seeds, labels):
            tokens = np.asarray(data.token_labels)
            tokens = shuffled_within(tokens, train[:, None] & (tokens >= 0), seed)
            changed = dataclasses.replace(data, labels=of, token_labels=tokens)
            found.append(scores_of(fit(tuple(dataclasses.replace(one, data=changed) for one in on), train[None]), on))
        joined = [np.concatenate([getattr(s, name) for s in found], axis=2) for name in ("values", "thresholds")]
        yield number, Scores(*joined), np.stack(labels)


def within_classes(fit: Fitting, on: Activations, split: Split) -> Iterator[tuple[int, FittedProbes, Scores]]:
    """Probes on vectors of which each coordinate was shuffled within the classes of the training part, scored on the
    vectors as they are: (number of the split, probes, scores)."""
    (vectors,) = on
    if not isinstance(vectors, Vectors):
        raise UserError("coordinates are shuffled within classes only where a probe reads one vector for each example")
    labels = jnp.asarray(vectors.data.labels)
    for number, train in enumerate(split.train):
        part, values = jnp.asarray(np.flatnonzero(train)), {}
        for site_number, (site, x) in enumerate(vectors.values.items()):
            keys = jax.random.split(jax.random.fold_in(jax.random.key(number), site_number), len(x))
            changed = np.array(x)
            for rule in range(len(x)):
                changed[rule, train] = shuffle_within_classes(keys[rule], jnp.asarray(x[rule, train]), labels[part])
            values[site] = changed
        fitted = fit((dataclasses.replace(vectors, values=values),), train[None])
        yield number, fitted, scores_of(fitted, on)


def directions(fitted: FittedProbes) -> Float[np.ndarray, "site rule labels split strength seed d"] | None:
    """The unit vector of each probe's direction. None: the probes have no single direction."""
    flat = jax.tree.map(lambda a: a.reshape(-1, *a.shape[len(AXES) :]), fitted.probes)
    try:
        found = np.asarray(jax.vmap(lambda probe: probe.direction())(flat))
    except UserError:
        return None
    if found.ndim != 2:
        return None
    length = np.linalg.norm(found, axis=-1, keepdims=True)
    unit = found / np.where(length > 0, length, 1)
    return unit.reshape(*(len(fitted.axes[name]) for name in AXES), -1)
