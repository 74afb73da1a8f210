"""`fit_probes`: one program that fits a probe for each site, token rule, label, split, strength and seed.

vectors = gather(model, data, "blocks.*.resid_post")
fitted = fit_probes(Logistic(C=(0.1, 1.0)), vectors, train=split.train)
fitted.scores(vectors)                    Labelled [site, rule, labels, split, strength, seed, example]
probe = fitted.probe(site="blocks.2.resid_post", strength=1.0)
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int

from jax_interp.core.errors import UserError
from jax_interp.core.labelled import Labelled
from jax_interp.probes.gather import Sequences, Vectors
from jax_interp.probes.kind import Kind, PairRows, Rows, SequenceRows
from jax_interp.probes.labelled_tokens import LabelledTokens
from jax_interp.probes.probe import Probe

AXES = ("site", "rule", "labels", "split", "strength", "seed")
"""The axes of fitted probes."""
OWN = "own"
"""The name of the labels that the examples have themselves."""


@dataclasses.dataclass(frozen=True, eq=False)
class FittedProbes:
    """Probes of one kind, on all axes of `AXES`. `fit_probes` makes them.

    Args:
      kind: how they were found.
      probes: one pytree. Each array begins with the six axes.
      axes: the labels of the entries of each axis.
      classes: the names of the classes. The second one is the positive class.
    """

    kind: Kind
    probes: Probe
    axes: Mapping[str, tuple[Any, ...]]
    classes: tuple[str, ...]

    def sel(self, **labels: Any) -> FittedProbes:
        """Keep one entry of some axes, by label. The axes stay, with one entry.

        Raises:
          UserError: there is no such axis or label.
        """
        index, axes = [slice(None)] * len(AXES), dict(self.axes)
        for name, label in labels.items():
            if name not in AXES:
                raise UserError(f"fitted probes have no axis {name!r}; their axes are {', '.join(AXES)}")
            if label not in axes[name]:
                raise UserError(f"no {name} {label!r}; there are {', '.join(map(repr, axes[name]))}")
            at = axes[name].index(label)
            index[AXES.index(name)], axes[name] = slice(at, at + 1), (label,)
        return dataclasses.replace(self, probes=jax.tree.map(lambda a: a[tuple(index)], self.probes), axes=axes)

    def probe(self, **labels: Any) -> Probe:
        """One probe. Axes with one entry need not be named.

        Raises:
          UserError: an axis with several entries was not named, or there is no such entry.
        """
        found = self.sel(**labels)
        if open_axes := [name for name in AXES if len(found.axes[name]) > 1]:
            of = "; ".join(f"{name}: {', '.join(map(repr, found.axes[name]))}" for name in open_axes)
            raise UserError(f"name one entry of each axis with several ({of})")
        return jax.tree.map(lambda a: a[(0,) * len(AXES)], found.probes)

    def scores(self, on: Vectors | Sequences) -> Labelled:
        """The score of each example: `[site, rule, labels, split, strength, seed, example]`.

        Args:
          on: activations at the sites (and token rules) that the probes were fitted on.

        Raises:
          UserError: a site or a rule is missing.
        """
        x, read = _inputs_of(on, self.axes["site"], self.axes["rule"])
        found = _scores(self.probes, x, read)
        return Labelled(np.asarray(found), {**self.axes, "example": range(len(on.data))}, "score")


def fit_probes(
    kind: Kind,
    on: Vectors | Sequences,
    *,
    train: Bool[np.ndarray, "*split example"] | None = None,
    labels: Mapping[str, Int[np.ndarray, " example"]] | None = None,
    weight: Float[np.ndarray, " example"] | None = None,
    seeds: Sequence[int] = (0,),
    at_once: int = 1,
) -> FittedProbes:
    """Fit one probe for each site, token rule, set of labels, split, strength and seed, in one program.

    Args:
      kind: how the probes are found.
      on: the activations: `Vectors`, or `Sequences` for kinds that read tokens.
      train: the examples to fit on, one row for each split. None: all.
      labels: sets of labels by name, in place of the examples' own (several concepts, shuffled labels).
      weight: the weight of each example. None: 1.
      seeds: a probe is fitted for each seed.
      at_once: the number of sites (times rules) that are fitted side by side; the others wait, to bound the memory.

    Raises:
      UserError: the kind does not fit the activations or the labels, a split has examples of one class only, there are
        no pairs, an activation in use is not finite, or the problem has no finite solution.
    """
    data = on.data
    targets = {OWN: data.labels} if labels is None else dict(labels)
    splits = np.ones((1, len(data)), bool) if train is None else np.atleast_2d(np.asarray(train, bool))
    _check(kind, on, targets, splits, seeds)
    kind.check(on, splits, labels is None)
    each = np.ones(len(data), np.float32) if weight is None else np.asarray(weight, np.float32)
    _check_finite(on, (splits * each).any(axis=0))
    y = jnp.asarray(np.stack([np.asarray(of) for of in targets.values()]))
    inputs, y, weights = _rows(kind, on, y, jnp.asarray(splits * each))
    strengths = jnp.asarray(kind.strengths, jnp.float32) if kind.strengths else None
    keys = jax.vmap(jax.random.key)(jnp.asarray(list(seeds), jnp.uint32))
    probes = _fit_all(kind, at_once, inputs, y, weights, strengths, keys)
    rules = _rules(on)
    probes = jax.tree.map(lambda a: a.reshape(len(on.sites), len(rules), *a.shape[1:]), probes)
    axes = {
        "site": on.sites,
        "rule": rules,
        "labels": tuple(targets),
        "split": tuple(range(len(splits))),
        "strength": kind.strengths or (None,),
        "seed": tuple(seeds),
    }
    _check_found(kind, probes, on.sites)
    return FittedProbes(kind, probes, axes, data.classes)


@partial(jax.jit, static_argnums=(0, 1))
def _fit_all(kind: Kind, at_once: int, inputs: Any, y: Array, weights: Array, strengths: Array | None, keys: Array):
    one = lambda data: kind.fit_grid(data, y, weights, strengths, keys)
    return jax.lax.map(one, inputs, batch_size=at_once)


@jax.jit
def _scores(probes: Probe, x: Array, read: Array | None) -> Array:
    def score(probe: Probe, x: Array) -> Array:
        return probe.score(x) if read is None else probe.score(x, read)

    for _ in range(4):
        score = jax.vmap(score, in_axes=(0, None))
    return jax.vmap(jax.vmap(score))(probes, x)


def _rules(on: Vectors | Sequences) -> tuple[str, ...]:
    return tuple(map(str, on.rules)) if isinstance(on, Vectors) else (str(on.rule),)


def _inputs_of(on: Vectors | Sequences, sites: Sequence[str], rules: Sequence[str]) -> tuple[Array, Array | None]:
    """The activations of these sites and rules: `[site, rule, example, ...]`, and the tokens that are read."""
    for what, asked, exist in (("site", sites, on.sites), ("rule", rules, _rules(on))):
        if missing := [name for name in asked if name not in exist]:
            raise UserError(f"the probes read the {what} {missing[0]!r}; these activations have {', '.join(exist)}")
    values = [np.asarray(on.values[site]) for site in sites]
    if isinstance(on, Sequences):
        return jnp.asarray(np.stack(values)[:, None]), jnp.asarray(on.read)
    at = [_rules(on).index(rule) for rule in rules]
    return jnp.asarray(np.stack([x[at] for x in values])), None


def _rows(kind: Kind, on: Vectors | Sequences, y: Array, weight: Array) -> tuple[Any, Array, Array]:
    """(the data of each site and rule, with a leading axis; the labels; the weights)."""
    if isinstance(on, Sequences):
        x, tokens = jnp.asarray(np.stack(list(on.values.values()))), on.data.token_labels
        across = lambda a: jnp.broadcast_to(jnp.asarray(a), (len(x), *np.shape(a)))
        of_token = None if tokens is None else across(tokens)
        return SequenceRows(x, across(on.read), across(y[0]), of_token, across(weight[0])), y, weight
    x = jnp.asarray(on.stacked())
    x = x.reshape(-1, *x.shape[2:])
    across = lambda a: jnp.broadcast_to(a, (len(x), *a.shape))
    if kind.takes == "rows":
        return Rows(x, across(y[0]), across(weight[0])), y, weight
    first, second = jnp.asarray(on.data.pairs).T
    y, weight = y[:, first], jnp.minimum(weight[:, first], weight[:, second])
    return PairRows(x[:, first], x[:, second], across(y[0]), across(weight[0])), y, weight


def _check(
    kind: Kind, on: Vectors | Sequences, targets: Mapping[str, np.ndarray], splits: np.ndarray, seeds: Sequence[int]
) -> None:
    data, name = on.data, type(kind).__name__
    if (kind.takes == "sequences") != isinstance(on, Sequences):
        needs = "one vector per token (gather_tokens)" if kind.takes == "sequences" else "one per example (gather)"
        raise UserError(f"{name} reads {needs}, and got {type(on).__name__}")
    if kind.takes == "pairs" and (data.pairs is None or not len(data.pairs)):
        raise UserError(f"{name} needs contrast pairs, and {data.name} has none")
    if splits.shape[1:] != (len(data),) or any(np.shape(of) != (len(data),) for of in targets.values()):
        raise UserError(f"train and labels must have one entry for each of the {len(data)} examples")
    if not seeds:
        raise UserError("give at least one seed")
    if kind.target == "number":
        return
    for label, of in targets.items():
        if not np.issubdtype(np.asarray(of).dtype, np.integer):
            raise UserError(f"{name} tells classes apart, and the labels {label!r} are real numbers: use a regression")
        if kind.target == "binary" and not set(np.unique(of)) <= {0, 1}:
            raise UserError(f"{name} tells two classes apart; {label!r} has {', '.join(data.classes)}")
        for number, split in enumerate(splits):
            if len(np.unique(np.asarray(of)[split])) < 2:
                raise UserError(f"the training part of split {number} has examples of one class only ({label!r})")
            if kind.takes == "pairs":
                _check_pairs(kind, data, np.asarray(of), split, number)


def _check_finite(on: Vectors | Sequences, used: np.ndarray) -> None:
    for site, x in on.values.items():
        rows = x[used][on.read[used]] if isinstance(on, Sequences) else x[:, used]
        if not np.isfinite(rows).all():
            raise UserError(f"{site} is not finite in an example that probes are fitted on: look for NaN in the model")


def _check_found(kind: Kind, probes: Probe, sites: Sequence[str]) -> None:
    for leaf in jax.tree.leaves(probes):
        finite = np.isfinite(np.asarray(leaf)).reshape(len(sites), -1).all(axis=1)
        if not finite.all():
            raise UserError(
                f"{type(kind).__name__} has no finite solution at {sites[int(np.argmin(finite))]}: look for values "
                "that are equal in all examples of a class, and for far larger ones than the others"
            )


def _check_pairs(kind: Kind, data: LabelledTokens, labels: np.ndarray, split: np.ndarray, number: int) -> None:
    whole = data.pairs[split[data.pairs].all(axis=1)]
    if not len(whole):
        raise UserError(f"the training part of split {number} has no whole pair: give each pair one group")
    if kind.centres_sides and len(found := np.unique(labels[whole[:, 0]])) < 2:
        raise UserError(
            f"{type(kind).__name__} centres each side of the pairs by itself, and the first examples of all pairs in "
            f"split {number} are of the class {data.classes[found[0]]!r}: that would remove what tells the classes "
            "apart. Order pairs by their form, such as (statement, negation), so that either one can be the true one"
        )
