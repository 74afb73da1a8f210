"""Figures of a cross-layer dictionary: for all layers together, for each layer, and for its replacement model.

    result = evaluate_cross_layer(model, reads, clt, [(tokens, keep), ...], writes=targets)
    result.together.reconstruction.fvu, result.layers[3].fvu, result.replacement.recovered_mean

There are two losses. For the spliced loss, the latents come from the clean run, so errors do not accumulate. For the
loss of the replacement model (replacement.py), the latents come from the same run, so later layers read the errors of
earlier layers. This loss is higher. Attribution graphs describe the replacement model.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any

import jax.numpy as jnp
import numpy as np

from jax_interp.core.objectives import kl_divergence, negative_log_likelihood
from jax_interp.data.harvest import later_positions
from jax_interp.dictionaries.evaluation import downstream
from jax_interp.dictionaries.evaluation.downstream import CrossEntropy, address_tuple, score
from jax_interp.dictionaries.evaluation.evaluate import Batches, Evaluation, evaluate, without_nan
from jax_interp.dictionaries.forms.cross_layer import CrossLayer
from jax_interp.dictionaries.forms.side_by_side import SideBySide
from jax_interp.dictionaries.replacement import replacement
from jax_interp.surgery import Model

SCORES = ("recovered_mean", "recovered_zero", "kl_score_mean")


@dataclasses.dataclass(frozen=True)
class Layer:
    """The figures of one source and of the target of its layer."""

    reads: str
    """The address that the source reads."""
    writes: str
    """The address of the target."""
    fvu: float
    """FVU of the target. Earlier sources also write this target."""
    l0: float
    """Mean number of latents of the source that are on, per token."""
    dead: int
    """Latents of the source that fired on no token."""


@dataclasses.dataclass(frozen=True)
class Replaced:
    """The losses of the replacement model, over the same predictions as `Evaluation.cross_entropy`.

    The ablations that the scores refer to ablate all targets.
    """

    cross_entropy: float
    """Cross-entropy of the replacement model, in nats."""
    kl: float
    """KL(clean ‖ replacement) of the next token's distribution, in nats."""
    recovered_mean: float
    """(mean-ablated - replacement) / (mean-ablated - clean), of cross-entropies."""
    recovered_zero: float
    """(zero-ablated - replacement) / (zero-ablated - clean), of cross-entropies."""
    kl_score_mean: float
    """1 - `kl` / (KL of mean ablation)."""
    undefined: dict[str, str] = dataclasses.field(default_factory=dict)
    """For each score that is NaN, the reason."""


@dataclasses.dataclass(frozen=True)
class CrossLayerEvaluation:
    """The figures of `evaluate_cross_layer`."""

    together: Evaluation
    """All sources and targets side by side."""
    layers: tuple[Layer, ...]
    """The figures of each layer."""
    replacement: Replaced
    """The loss of the replacement model."""

    def to_json(self) -> dict[str, Any]:
        """The figures of `Evaluation.to_json()`, plus "layers" and "replacement"."""
        return self.together.to_json() | without_nan(
            {"layers": [dataclasses.asdict(layer) for layer in self.layers]}
            | {"replacement": dataclasses.asdict(self.replacement)}
        )


def evaluate_cross_layer(
    model: Model,
    reads: Sequence[str],
    dictionary: CrossLayer,
    batches: Batches,
    writes: Sequence[str] | None = None,
    skip_first: int = 0,
) -> CrossLayerEvaluation:
    """Measure a cross-layer dictionary in its model.

    Args:
      model: any model that keeps the contract of `jax_interp.surgery`.
      reads: the address that each source reads.
      dictionary: the cross-layer dictionary.
      batches: pairs of tokens and `keep`, as for `evaluate`. They are read three times.
      writes: the address of each target. None: the same as `reads`.
      skip_first: as in `evaluate`.

    Returns:
      The figures of all layers together, of each layer, and of the replacement model.

    Raises:
      SelfCheckError: as in `evaluate`.
      UserError: as in `evaluate` and `replacement`.
    """
    targets = reads if writes is None else writes
    reads, targets = address_tuple(reads), address_tuple(targets)
    together = evaluate(model, reads, SideBySide(dictionary), batches, writes=writes, skip_first=skip_first)
    of_layers = zip(reads, targets, together.fvu_by_value.values(), together.by_source, strict=True)
    layers = tuple(Layer(read, written, fvu, one.l0, one.dead) for read, written, fvu, one in of_layers)
    batches = [(tokens, later_positions(keep, skip_first)) for tokens, keep in batches]
    return CrossLayerEvaluation(
        together, layers, of_replacement(model, reads, targets, dictionary, batches, together.cross_entropy)
    )


def of_replacement(
    model: Model,
    reads: Sequence[str],
    writes: Sequence[str],
    dictionary: CrossLayer,
    batches: Batches,
    others: CrossEntropy,
) -> Replaced:
    """The losses of the replacement model on the `batches` that `others` was computed from. Values are not replaced at
    positions where `keep` is False."""
    local = replacement(model, reads, writes, dictionary)
    loss = divergence = 0.0
    for tokens, keep in batches:
        tokens, counted = jnp.asarray(tokens), downstream.prediction_mask(keep)
        clean = downstream.log_probabilities(model, tokens)
        log_p = downstream.log_probabilities(dataclasses.replace(local, where=jnp.asarray(keep)), tokens)
        of_batch = negative_log_likelihood(log_p, tokens[:, 1:]), kl_divergence(clean, log_p)
        entropies, divergences = (np.asarray(a, np.float64)[counted].sum() for a in of_batch)
        loss, divergence = loss + entropies / others.predictions, divergence + divergences / others.predictions
    return Replaced(
        cross_entropy=float(loss),
        kl=float(divergence),
        recovered_mean=float(score(others.mean_ablated, loss, others.clean)),
        recovered_zero=float(score(others.zero_ablated, loss, others.clean)),
        kl_score_mean=float(score(others.kl_mean_ablated, divergence, 0.0)),
        undefined={name: reason for name, reason in others.undefined.items() if name in SCORES},
    )
