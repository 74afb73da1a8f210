"""`judge_erasers`: what a new linear probe still reads after erasure, on the fitted and on other examples.

The guarantee of LEACE is about the examples that the eraser was fitted on. On others the concept may still be readable,
the more so the fewer examples there were for each column. This report shows both. A probe that is fitted on the same
examples as the eraser finds nothing and would find nothing elsewhere, so that the held-out figure is of probes that are
fitted on one half of the held-out examples and judged on the other half.
"""

from __future__ import annotations

import dataclasses
from typing import Any

import jax.numpy as jnp
import numpy as np
from jaxtyping import Bool

from jax_interp.core.errors import UserError
from jax_interp.core.estimates import Estimate
from jax_interp.core.logistic import fit_logistic
from jax_interp.probes.erasure.fit import Erasers
from jax_interp.probes.gather import Vectors
from jax_interp.probes.measures import auroc_interval


@dataclasses.dataclass(frozen=True)
class Judgement:
    """What logistic regression reads of one class against the others, at one site.

    Args:
      site: the address.
      label: the class.
      entropy: the logistic loss of the best constant on the fitted examples, in nats.
      loss: the loss of a probe on the fitted examples: before erasure, and after it.
      before: the AUROC on held-out examples before erasure, of probes that are fitted on the other half of them.
      after: the same after erasure. If its interval lies above ½, the concept can still be read.
      changed: the mean squared change of held-out activations, divided by their variance.
    """

    site: str
    label: str
    entropy: float
    loss: tuple[float, float]
    before: Estimate
    after: Estimate
    changed: float

    def to_json(self) -> dict[str, Any]:
        out = {field.name: getattr(self, field.name) for field in dataclasses.fields(self)}
        return out | {"loss": list(self.loss), "before": self.before.to_json(), "after": self.after.to_json()}

    def __str__(self) -> str:
        return (
            f"{self.site}, {self.label}: held-out AUROC {self.before} before, {self.after} after; loss on fitted "
            f"examples {self.loss[1]:.4f} of {self.entropy:.4f}; changed {self.changed:.2%} of the variance"
        )


def judge_erasers(
    erasers: Erasers, vectors: Vectors, train: Bool[np.ndarray, " example"], *, C: float = 1.0, seed: int = 0
) -> list[Judgement]:
    """Fit new probes before and after erasure.

    Args:
      erasers: fitted on the training examples.
      vectors: the activations, of one token rule, with labels that are classes.
      train: the examples that the erasers were fitted on. The others are held out.
      C: the inverse strength of the probes' L2 penalty, for columns of variance 1 before erasure.
      seed: the seed of the halves. Groups stay whole.

    Returns:
      For each site, one judgement for each class; only one if there are two classes.

    Raises:
      UserError: there are several token rules, a site is missing, or a class is missing among the training examples or
        in a half of the others.
    """
    data, train = vectors.data, np.asarray(train, bool)
    if len(vectors.rules) > 1 or not set(erasers.of_site) <= set(vectors.values):
        raise UserError("give the vectors of one token rule, at the sites of the erasers")
    if not data.classes:
        raise UserError("labels that are real numbers have no classes to be read")
    labels = range(1, len(data.classes)) if len(data.classes) == 2 else range(len(data.classes))
    y = np.stack([data.labels == label for label in labels])
    groups = np.arange(len(data)) if data.groups is None else np.unique(data.groups, return_inverse=True)[1]
    half = np.random.default_rng(seed).permutation(int(groups.max()) + 1)[groups] % 2 == 0
    fits = np.stack([train, ~train & half, ~train & ~half])
    if any(len({*of_class[part]}) < 2 for of_class in y for part in fits):
        raise UserError("every class must be among the training examples and in both halves of the others")
    found = []
    for site, eraser in erasers.of_site.items():
        x = vectors.values[site][0]
        both = np.stack([x, np.asarray(eraser(jnp.asarray(x)))])
        centred = x[~train] - x[train].mean(axis=0)
        changed = float(np.sum((both[1] - x)[~train] ** 2) / np.sum(centred**2))
        scores = _scores((both - x[train].mean(axis=0)) / np.maximum(x[train].std(axis=0), 1e-6), y, fits, C)
        held_out = np.where(half, scores[..., 2, :], scores[..., 1, :])
        for number, label in enumerate(labels):
            share = y[number, train].mean()
            entropy = float(-share * np.log(share) - (1 - share) * np.log(1 - share))
            signs = np.where(y[number], 1.0, -1.0)
            before, after = (np.logaddexp(0, -signs * score)[train].mean() for score in scores[:, number, 0])
            areas = [
                auroc_interval(score[~train], y[number, ~train], None if data.groups is None else groups[~train])
                for score in held_out[:, number]
            ]
            name = data.classes[label]
            found.append(Judgement(site, name, entropy, (float(before), float(after)), *areas, changed=changed))
    return found


def _scores(both: np.ndarray, y: np.ndarray, fits: np.ndarray, C: float) -> np.ndarray:
    """The scores of all examples: `[before or after, class, fit, example]`."""
    shape = (len(both), len(y), len(fits))
    spread = lambda a, axis: np.broadcast_to(np.expand_dims(a, axis), (*shape, *a.shape[1:])).reshape(-1, *a.shape[1:])
    x = jnp.asarray(spread(both, (1, 2)), jnp.float32)
    weight = jnp.asarray(spread(fits, (0, 1)), jnp.float32)
    found = fit_logistic(x, jnp.asarray(spread(y, (0, 2))), weight, C=C).scores(x)
    return np.asarray(found, np.float64).reshape(*shape, -1)
