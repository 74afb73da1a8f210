"""`fit_ensemble`: one score from probes at several sites.

ensemble = fit_ensemble(Logistic(), gather(model, data, "blocks.*.resid_post"), train=split.train[0])
ensemble.scores(vectors)                     Labelled [example]
ensemble.weight                              how much each site counts

The combination is fitted on out-of-fold scores: each training example is scored by probes that have not seen it, nor
anything that leaks from it. In-sample scores would give most weight to the site that overfits most. Nordby et al. 2026
(arXiv:2604.13386) combine layers by a logistic regression on the scores of their probes: it finds a concept whose
direction turns from layer to layer, where no single layer is best for all data sets.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Literal

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int

from jax_interp.core.errors import UserError
from jax_interp.core.labelled import Labelled
from jax_interp.core.logistic import fit_logistic
from jax_interp.core.pytrees import register_dataclass
from jax_interp.probes.fit import FittedProbes, fit_probes
from jax_interp.probes.folds import grouped_folds
from jax_interp.probes.gather import Sequences, Vectors
from jax_interp.probes.kind import Kind
from jax_interp.probes.probe import PROBES, Probe
from jax_interp.probes.thresholds import best_threshold


@PROBES.register
@register_dataclass
@dataclasses.dataclass(frozen=True)
class EnsembleProbe(Probe):
    """score(x) = Σₛ weightₛ scoreₛ(xₛ) + bias, over the sites s.

    It reads the activations of all sites: a mapping from sites to arrays, or one array `[site, ...]`.

    Args:
      probes: the probe of each site, as one pytree. Each array begins with the site axis.
      weight: how much the score of each site counts, in the units of the scores.
      bias: b.
      threshold: the score between the classes.
      sites: the addresses.
      log_odds: whether the score is meant as the log-odds of the positive class.
    """

    probes: Probe
    weight: Float[Array, " site"]
    bias: Float[Array, ""]
    threshold: Float[Array, ""]
    sites: tuple[str, ...] = dataclasses.field(metadata={"static": True})
    log_odds: bool = dataclasses.field(default=False, metadata={"static": True})

    def score(
        self, x: Mapping[str, Array] | Float[Array, "site ..."], read: Bool[Array, "... pos"] | None = None
    ) -> Float[Array, "..."]:
        return self._sum(jax.vmap(lambda probe, x: probe.score(x, read))(self.probes, self._stack(x)))

    def token_scores(self, x: Mapping[str, Array] | Float[Array, "site ... d"]) -> Float[Array, "..."]:
        """The weighted sum of the scores that the sites give to each token by itself."""
        return self._sum(jax.vmap(lambda probe, x: probe.token_scores(x))(self.probes, self._stack(x)))

    def direction(self) -> Float[Array, " d"]:
        raise UserError("an ensemble has a direction at each site: use directions()")

    def directions(self) -> Mapping[str, Float[Array, " d"]]:
        """The direction at each site, times the weight of the site.

        Raises:
          UserError: the probes are not linear.
        """
        found = jax.vmap(lambda probe, weight: weight * probe.direction())(self.probes, self.weight)
        return dict(zip(self.sites, found, strict=True))

    def scores(self, on: Vectors | Sequences, rule: str | None = None) -> Labelled:
        """The score of each example, with the axis `example`.

        Args:
          on: activations at the sites of the ensemble.
          rule: the token rule of `Vectors`. None: the only one.
        """
        x, read = inputs(on, self.sites, rule)
        return Labelled(np.asarray(self.score(x, read)), {"example": range(len(on.data))}, "score")

    def _stack(self, x: Mapping[str, Array] | Array) -> Array:
        if isinstance(x, Mapping):
            if missing := [site for site in self.sites if site not in x]:
                raise UserError(f"the ensemble reads {missing[0]!r}; there are {', '.join(x)}")
            return jnp.stack([jnp.asarray(x[site]) for site in self.sites])
        if len(x) != len(self.sites):
            raise UserError(f"the ensemble reads {len(self.sites)} sites, and x has shape {x.shape}: [site, ...]")
        return x

    def _sum(self, scores: Float[Array, "site ..."]) -> Float[Array, "..."]:
        return jnp.tensordot(self.weight, scores, axes=1, precision=jax.lax.Precision.HIGHEST) + self.bias


def fit_ensemble(
    kind: Kind,
    on: Vectors | Sequences,
    *,
    train: Bool[np.ndarray, " example"] | None = None,
    how: Literal["stacked", "mean"] = "stacked",
    sites: Sequence[str] | None = None,
    rule: str | None = None,
    folds: int = 5,
    C: float = 1.0,
) -> EnsembleProbe:
    """Fit a probe at each site and a combination of their scores.

    "stacked": logistic regression (L2 penalty with inverse strength C) on the scores of the sites; its score is the
    log-odds, and its threshold 0. "mean": the mean over sites of the scores, where each site's are centred and scaled
    by their mean and standard deviation; its threshold has the highest balanced accuracy. Both are fitted on
    out-of-fold scores; the probes of the ensemble are fitted on all training examples.

    Args:
      kind: how the probe of each site is found. It has one strength, or none.
      on: the activations.
      train: the examples to fit on. None: all.
      how: how scores are combined.
      sites: the sites. None: all.
      rule: the token rule of `Vectors`. None: the only one.
      folds: the number of folds. A group of examples that leaks stays in one fold.
      C: the inverse strength of the penalty on the weights of scores in units of their standard deviation.

    Raises:
      UserError: the kind has several strengths or is not binary, or what `fit_probes` and `grouped_folds` refuse.
    """
    if kind.target != "binary":
        raise UserError(f"an ensemble tells two classes apart, and {type(kind).__name__} predicts {kind.target}")
    if len(kind.strengths) > 1:
        raise UserError(f"{type(kind).__name__} has the strengths {kind.strengths}: choose one on held-out examples")
    on = _only(on, sites, rule)
    train = np.ones(len(on.data), bool) if train is None else np.asarray(train, bool)
    if train.shape != (len(on.data),):
        raise UserError(f"train has shape {train.shape}: an ensemble is fitted on one split of {len(on.data)} examples")
    fold = grouped_folds(on.data, folds, among=train)
    fitted = fit_probes(kind, on, train=np.stack([train, *(train & (fold != number) for number in range(folds))]))
    seen, positive = _out_of_fold(fitted, on, fold)[:, train], on.data.labels[train] == 1
    mean, scale = seen.mean(axis=1), seen.std(axis=1)
    scale = np.where(scale > 0, scale, 1)
    z = ((seen - mean[:, None]) / scale[:, None]).T.astype(np.float32)
    if how == "stacked":
        of_z = fit_logistic(jnp.asarray(z)[None], jnp.asarray(positive)[None], C=C)
        weight, intercept = np.asarray(of_z.weight[0]), float(of_z.intercept[0])
        threshold = jnp.zeros((), jnp.float32)
    else:
        weight, intercept = np.full(len(scale), 1 / len(scale)), 0.0
        threshold = best_threshold(jnp.asarray(z.mean(axis=1)), jnp.asarray(positive), jnp.ones(len(z), jnp.float32))
    weight = weight / scale
    probes = jax.tree.map(lambda leaf: leaf[(slice(None), *(0,) * 5)], fitted.sel(split=0).probes)
    return EnsembleProbe(
        probes,
        jnp.asarray(weight, jnp.float32),
        jnp.asarray(intercept - weight @ mean, jnp.float32),
        threshold,
        on.sites,
        log_odds=how == "stacked",
    )


def inputs(
    on: Vectors | Sequences, sites: Sequence[str], rule: str | None = None
) -> tuple[Float[Array, "site example ..."], Bool[Array, "example pos"] | None]:
    """The activations that an ensemble reads, and the tokens that count."""
    on = _only(on, sites, rule)
    x = jnp.asarray(np.stack(list(on.values.values())))
    return (x, jnp.asarray(on.read)) if isinstance(on, Sequences) else (x[:, 0], None)


def _out_of_fold(
    fitted: FittedProbes, on: Vectors | Sequences, fold: Int[np.ndarray, " example"]
) -> Float[np.ndarray, "site example"]:
    """The score of each example by the probes of the split in which its fold is left out."""
    scores = np.asarray(fitted.scores(on).values)[:, 0, 0, :, 0, 0].astype(np.float64)  # [site, split, example]
    return np.take_along_axis(scores, np.broadcast_to(fold + 1, scores[:, :1].shape), axis=1)[:, 0]


def _only(on: Vectors | Sequences, sites: Sequence[str] | None, rule: str | None) -> Vectors | Sequences:
    """The activations of these sites and this rule."""
    if missing := [site for site in sites or () if site not in on.values]:
        raise UserError(f"there is no site {missing[0]!r}; there are {', '.join(on.sites)}")
    values = {site: on.values[site] for site in (on.sites if sites is None else sites)}
    if isinstance(on, Sequences):
        return dataclasses.replace(on, values=values)
    names = [str(of) for of in on.rules]
    if rule is None and len(names) > 1:
        raise UserError(f"the activations have the rules {', '.join(names)}: name one")
    if rule is not None and rule not in names:
        raise UserError(f"there is no rule {rule!r}; there are {', '.join(names)}")
    at = 0 if rule is None else names.index(rule)
    values = {site: x[at : at + 1] for site, x in values.items()}
    return dataclasses.replace(on, rules=on.rules[at : at + 1], values=values)
