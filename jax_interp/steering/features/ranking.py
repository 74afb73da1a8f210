"""Choose latents to steer with: all by their first-order effect, the best of them by what was measured.

ranked = rank_features(model, steering, targets, neutral_prompts, top=10, data=labelled_texts)
print(ranked.table())
best = steer_features(sae, address, ranked.rows[0].feature, highest[ranked.rows[0].feature])
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence

import numpy as np
from jaxtyping import Array, Float

from jax_interp.core.errors import UserError
from jax_interp.core.estimates import Estimate, estimate
from jax_interp.core.labelled import Labelled
from jax_interp.probes.labelled_tokens import LabelledTokens
from jax_interp.steering.features.effects import gradient_effects, means_by_group, measured_effects
from jax_interp.steering.features.feature_steering import FeatureSteering, some_features
from jax_interp.steering.features.input_scores import input_scores
from jax_interp.steering.features.output_scores import output_scores
from jax_interp.steering.features.target_texts import TargetTexts
from jax_interp.surgery import Model


@dataclasses.dataclass(frozen=True)
class RankedFeature:
    """What is known of one latent.

    Args:
      feature: the latent.
      effect: the measured effect on the log-likelihood of the targets in nats: the mean over texts, with its interval
        over texts.
      by_group: the measured mean effect in each group of texts.
      gradient: the mean effect to first order.
      output_score: the output score, the mean over the neutral prompts.
      input_score: the AUROC of the latent for the concept. NaN if no labelled texts were given.
    """

    feature: int
    effect: Estimate
    by_group: dict[str, float]
    gradient: float
    output_score: float
    input_score: float


@dataclasses.dataclass(frozen=True, eq=False)
class RankedFeatures:
    """Latents by measured effect, the best first.

    Args:
      rows: the latents that were measured.
      gradient: the first-order effects of all latents, axes "text" and "feature".
      rank_agreement: the Spearman correlation between the first-order and the measured effects of `rows`. NaN if there
        are fewer than three.
    """

    rows: tuple[RankedFeature, ...]
    gradient: Labelled
    rank_agreement: float

    def table(self) -> str:
        """The rows as text, one line for each latent."""
        lines = [f"{'latent':>7}  {'effect (nats)':<24}{'least group':>12}{'gradient':>10}{'output':>8}{'input':>7}"]
        lines += [
            f"{row.feature:>7}  {row.effect!s:<24}{min(row.by_group.values()):>12.3f}{row.gradient:>10.3f}"
            f"{row.output_score:>8.3f}{row.input_score:>7.3f}"
            for row in self.rows
        ]
        return "\n".join(lines)


def rank_features(
    model: Model,
    steering: FeatureSteering,
    targets: TargetTexts,
    neutral: Sequence[Sequence[int]],
    strength: float = 1.0,
    *,
    top: int = 10,
    data: LabelledTokens | None = None,
    unembed: Callable[[Array], Array] | None = None,
) -> RankedFeatures:
    """Rank latents by their effect on target texts, beside their output scores and input scores.

    All latents are ranked by their first-order effect, where every group of texts counts the same. The best of them are
    measured. The scores of these latents were the best of many, so measure the chosen one again on other texts.

    Args:
      model: any causal model that keeps the contract of `jax_interp.surgery`; its output is logits.
      steering: the latents to compare, usually all, with their activations at strength 1.
      targets: at least two texts that steering should make likelier.
      neutral: the token ids of neutral prompts, for output scores.
      strength: the strength of each latent.
      top: the number of latents to measure.
      data: texts of two classes, of which the second one is the concept, for input scores.
      unembed: as in `output_scores`.

    Raises:
      UserError: as in `gradient_effects` and `output_scores`; `top` is not from 1 to the number of latents; or there
        are fewer than two target texts.
    """
    n = len(steering.features)
    if not 1 <= top <= n:
        raise UserError(f"top={top}: there are {n} latents to measure")
    gradient = gradient_effects(model, steering, targets, strength)
    by_group = means_by_group(gradient, targets).values.mean(axis=0)
    best = np.argsort(-by_group, kind="stable")[:top]
    chosen = some_features(steering, best)
    measured = measured_effects(model, chosen, targets, strength)
    groups = means_by_group(measured, targets)
    output = output_scores(model, chosen, neutral, strength, unembed=unembed).score.mean(axis=0)
    features = np.asarray(chosen.features)
    known = np.full(top, np.nan)
    if data is not None:
        known = input_scores(model, steering.reads, steering.dictionary, data)[features]
    rows = []
    for i in np.argsort(-groups.values.mean(axis=0), kind="stable").tolist():
        values = measured.values[:, i].astype(float)
        each = dict(zip(groups.axes["group"], groups.values[:, i].tolist(), strict=True))
        effect = estimate(lambda weights, values=values: weights @ values, len(values))
        slope = float(gradient.values[:, best[i]].mean())
        rows.append(RankedFeature(int(features[i]), effect, each, slope, float(output[i]), float(known[i])))
    return RankedFeatures(tuple(rows), gradient, _spearman(by_group[best], groups.values.mean(axis=0)))


def _spearman(a: Float[np.ndarray, " n"], b: Float[np.ndarray, " n"]) -> float:
    """The rank correlation, NaN where it is not defined."""
    from scipy.stats import rankdata  # JAX requires scipy, so it is installed

    if len(a) < 3 or np.ptp(a) == 0 or np.ptp(b) == 0:
        return float("nan")
    return float(np.corrcoef(rankdata(a), rankdata(b))[0, 1])
