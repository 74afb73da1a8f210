"""Combining the scores of several monitors into one.

combined = LikelihoodRatio().fit(scores, positive, control)
combined(scores)                                             [example]

`LikelihoodRatio` is optimal (Neyman & Pearson 1933) if the scores are independent given the class and the densities are
right. Scores of monitors that read the same text are often not independent: `within_class_correlation` shows it.
`ZScoreMean` and `RankMean` need no suspicious examples, and so no assumption about them.
"""

from __future__ import annotations

import abc
import dataclasses
from typing import Literal

import numpy as np
from jaxtyping import Bool, Float
from scipy.special import expit, logsumexp

from jax_interp.core.errors import UserError
from jax_interp.core.registry import Registry
from jax_interp.probes.labelled_tokens import LabelledTokens
from jax_interp.probes.monitors.monitor import Access, Cost, Monitor

Scores = Float[np.ndarray, "example monitor"]
PAIRS = 2**22
"""The number of kernels that are evaluated at once: 32 MiB for each temporary array."""


class Combined(abc.ABC):
    """A fitted combination: from one score of each monitor to one score."""

    @abc.abstractmethod
    def __call__(self, scores: Scores) -> Float[np.ndarray, " example"]:
        """The combined score of each example."""


class Combination(abc.ABC):
    """How scores are combined."""

    needs_positives: bool = True
    """Whether `fit` uses the labelled examples. If not, it uses the control examples only."""

    def fit(self, scores: Scores, positive: Bool[np.ndarray, " example"], control: Scores) -> Combined:
        """Fit on validation data.

        Args:
          scores: the scores of labelled examples.
          positive: whether each of them is suspicious.
          control: the scores of benign examples.

        Raises:
          UserError: shapes differ, a score is not finite, a class is empty, or a monitor gives one score to all
            examples of a class.
        """
        scores, control, positive = (np.asarray(a) for a in (scores, control, positive))
        if scores.ndim != 2 or control.ndim != 2 or scores.shape[1] != control.shape[1]:
            raise UserError(f"scores {scores.shape} and control {control.shape} must be [example, monitor]")
        if positive.shape != scores.shape[:1]:
            raise UserError(f"there are {len(scores)} scored examples and {positive.size} labels")
        if not (np.isfinite(scores).all() and np.isfinite(control).all()):
            raise UserError("a score is not finite")
        used = [("benign control", control)]
        if self.needs_positives:
            used += [("suspicious", scores[positive]), ("benign", scores[~positive])]
        for name, of in used:
            if len(of) < 2:
                raise UserError(f"there are {len(of)} {name} examples to fit on: at least 2 are needed")
            if (flat := np.ptp(of, axis=0) == 0).any():
                raise UserError(f"monitor {int(np.argmax(flat))} gives one score to all {name} examples")
        return self._fit(scores.astype(np.float64), positive.astype(bool), control.astype(np.float64))

    @abc.abstractmethod
    def _fit(self, scores: Scores, positive: Bool[np.ndarray, " example"], control: Scores) -> Combined: ...


COMBINATIONS = Registry("combination of scores", Combination)


@COMBINATIONS.register
@dataclasses.dataclass(frozen=True)
class LikelihoodRatio(Combination):
    """S = Σⱼ log p(sⱼ | suspicious) / p(sⱼ | benign): the monitors are taken as independent given the class.

    Args:
      density: the density of a score within a class. "gaussian": one normal distribution. "kernel": a Gaussian kernel
        around each validation score, of Silverman's width.
      shared: for "gaussian", one standard deviation for both classes, so that S is linear in the scores. With two, S is
        quadratic: a very low score can be suspicious.
    """

    density: Literal["gaussian", "kernel"] = "gaussian"
    shared: bool = False

    def _fit(self, scores: Scores, positive: Bool[np.ndarray, " example"], control: Scores) -> Combined:
        suspicious, benign = scores[positive], scores[~positive]
        if self.density == "kernel":
            return KernelRatio(suspicious, benign)
        scales = [suspicious.std(axis=0, ddof=1), benign.std(axis=0, ddof=1)]
        if self.shared:
            n, m = len(suspicious) - 1, len(benign) - 1
            scales = [np.sqrt((n * scales[0] ** 2 + m * scales[1] ** 2) / (n + m))] * 2
        means = np.stack([suspicious.mean(axis=0), benign.mean(axis=0)])
        return GaussianRatio(means, np.stack(scales))


@dataclasses.dataclass(frozen=True, eq=False)
class GaussianRatio(Combined):
    """The log-likelihood ratio of normal distributions.

    Args:
      mean: the means, suspicious and benign.
      scale: the standard deviations.
    """

    mean: Float[np.ndarray, "2 monitor"]
    scale: Float[np.ndarray, "2 monitor"]

    def __call__(self, scores: Scores) -> Float[np.ndarray, " example"]:
        z = (scores[None] - self.mean[:, None]) / self.scale[:, None]
        log_p = -0.5 * z * z - np.log(self.scale)[:, None]
        return (log_p[0] - log_p[1]).sum(axis=-1)


@dataclasses.dataclass(frozen=True, eq=False)
class KernelRatio(Combined):
    """The log-likelihood ratio of kernel density estimates.

    A score outside the range of all validation scores counts as the nearest one inside: beyond them the estimates say
    nothing.

    Args:
      suspicious: the validation scores of suspicious examples.
      benign: those of benign examples.
    """

    suspicious: Scores
    benign: Scores

    def __call__(self, scores: Scores) -> Float[np.ndarray, " example"]:
        both = np.concatenate([self.suspicious, self.benign])
        scores = np.clip(scores, both.min(axis=0), both.max(axis=0))
        return (_log_density(self.suspicious, scores) - _log_density(self.benign, scores)).sum(axis=1)


def _log_density(samples: Scores, at: Scores) -> Scores:
    """The log of the kernel density estimate (Silverman 1986, eq. 3.31), up to a constant that both classes share."""
    low, high = np.quantile(samples, [0.25, 0.75], axis=0)
    scale = samples.std(axis=0, ddof=1)
    spread = np.where(high > low, np.minimum(scale, (high - low) / 1.34), scale)
    width = 0.9 * spread * len(samples) ** -0.2
    found = np.empty(at.shape)
    step = max(1, PAIRS // samples.size)
    for start in range(0, len(at), step):
        z = (at[start : start + step, None] - samples[None]) / width[None, None]
        found[start : start + step] = logsumexp(-0.5 * z * z, axis=1)
    return found - np.log(width * len(samples))[None]


@COMBINATIONS.register
@dataclasses.dataclass(frozen=True)
class ZScoreMean(Combination):
    """The mean of the scores in units of their spread on the control examples."""

    needs_positives = False

    def _fit(self, scores: Scores, positive: Bool[np.ndarray, " example"], control: Scores) -> Combined:
        scale = control.std(axis=0, ddof=1)
        weight = 1 / (scale * control.shape[1])
        return LinearSum(weight, -float((control.mean(axis=0) * weight).sum()))


@dataclasses.dataclass(frozen=True, eq=False)
class LinearSum(Combined):
    """scores · weight + bias."""

    weight: Float[np.ndarray, " monitor"]
    bias: float

    def __call__(self, scores: Scores) -> Float[np.ndarray, " example"]:
        return scores @ self.weight + self.bias


@COMBINATIONS.register
@dataclasses.dataclass(frozen=True)
class RankMean(Combination):
    """The mean of the shares of control examples that have lower scores. Equal scores count half.

    Scores above all control examples are equal, so it cannot rank within the highest 1 / (control examples).
    """

    needs_positives = False

    def _fit(self, scores: Scores, positive: Bool[np.ndarray, " example"], control: Scores) -> Combined:
        return Ranks(np.sort(control, axis=0))


@dataclasses.dataclass(frozen=True, eq=False)
class Ranks(Combined):
    """The mean rank among control scores.

    Args:
      control: the control scores, sorted for each monitor.
    """

    control: Scores

    def __call__(self, scores: Scores) -> Float[np.ndarray, " example"]:
        total = np.zeros(len(scores))
        for own, of in zip(self.control.T, scores.T, strict=True):
            total += np.searchsorted(own, of, "left") + np.searchsorted(own, of, "right")
        return total / (2 * len(self.control) * self.control.shape[1])


@COMBINATIONS.register
@dataclasses.dataclass(frozen=True)
class Stacking(Combination):
    """Logistic regression on the scores, which are first divided by their spread on the control examples.

    Args:
      C: the inverse strength of the L2 penalty.

    Raises:
      UserError: C is not positive.
    """

    C: float = 1.0

    def __post_init__(self):
        if not (np.isfinite(self.C) and self.C > 0):
            raise UserError(f"C={self.C} must be positive: it is the inverse strength of the penalty")

    def _fit(self, scores: Scores, positive: Bool[np.ndarray, " example"], control: Scores) -> Combined:
        from scipy.optimize import minimize  # JAX requires scipy, so it is installed

        centre, scale = control.mean(axis=0), control.std(axis=0, ddof=1)
        x = np.append((scores - centre) / scale, np.ones((len(scores), 1)), axis=1)
        sign, free = np.where(positive, 1.0, -1.0), np.append(np.ones(x.shape[1] - 1), 0.0)

        def objective(w: np.ndarray) -> tuple[float, np.ndarray]:
            margin = sign * (x @ w)
            loss = self.C * np.logaddexp(0, -margin).sum() + 0.5 * (free * w * w).sum()
            return loss / len(x), (free * w - self.C * (sign * expit(-margin)) @ x) / len(x)

        w = minimize(objective, np.zeros(x.shape[1]), jac=True, method="BFGS", options={"gtol": 1e-8}).x
        weight = w[:-1] / scale
        return LinearSum(weight, float(w[-1] - (weight * centre).sum()))


@dataclasses.dataclass(frozen=True, eq=False)
class CombinedMonitor(Monitor):
    """Several monitors that all score each example, as one monitor. `combine` makes it.

    Args:
      monitors: the monitors.
      combined: how their scores become one.
      name: the name in tables.
    """

    monitors: tuple[Monitor, ...]
    combined: Combined
    name: str

    @property
    def access(self) -> Access:  # pyright: ignore[reportIncompatibleVariableOverride]
        return "white box" if any(monitor.access == "white box" for monitor in self.monitors) else "black box"

    @property
    def cost(self) -> Cost:  # pyright: ignore[reportIncompatibleVariableOverride]
        total = self.monitors[0].cost
        for monitor in self.monitors[1:]:
            total += monitor.cost
        return total

    def costs(self, data: LabelledTokens) -> Float[np.ndarray, " example"]:
        return sum((monitor.costs(data) for monitor in self.monitors), np.zeros(len(data)))

    def _scores(self, data: LabelledTokens) -> Float[np.ndarray, " example"]:
        return self.combined(np.stack([monitor.scores(data) for monitor in self.monitors], axis=1))


def within_class_correlation(
    scores: Scores, positive: Bool[np.ndarray, " example"]
) -> Float[np.ndarray, "monitor monitor"]:
    """The rank correlations of the monitors within a class, averaged over the two classes.

    0 is what `LikelihoodRatio` assumes. Evidence that two monitors share is counted twice if it is far from 0.

    Raises:
      UserError: a class has fewer than 3 examples.
    """
    from scipy.stats import rankdata

    found = []
    for of in (scores[positive], scores[~positive]):
        if len(of) < 3:
            raise UserError(f"a correlation needs at least 3 examples of a class, there are {len(of)}")
        ranks = rankdata(of, axis=0)
        ranks -= ranks.mean(axis=0)
        length = np.sqrt((ranks * ranks).sum(axis=0))
        with np.errstate(invalid="ignore"):
            found.append(ranks.T @ ranks / (length[:, None] * length[None, :]))
    return (found[0] + found[1]) / 2
