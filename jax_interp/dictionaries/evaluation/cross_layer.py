"""What a cross-layer dictionary is worth: all of it together, layer by layer, and as the model that runs on it.

    result = evaluate_cross_layer(model, reads, clt, [(tokens, keep), ...], writes=targets)
    result.together.reconstruction.fvu, result.layers[3].fvu, result.replacement.recovered_mean

Two losses are given. "Spliced" has every target at once replaced by what the latents of the clean run write: errors do
not add up. The replacement model (replacement.py) reads in the run that it writes in, so the errors of early layers are
read by later ones: the harsher figure, and that of the model that attribution graphs are drawn of.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any

import jax.numpy as jnp
import numpy as np

from jax_interp.core.objectives import kl_divergence, negative_log_likelihood
from jax_interp.dictionaries.evaluation import downstream
from jax_interp.dictionaries.evaluation.downstream import CrossEntropy
from jax_interp.dictionaries.evaluation.evaluate import Batches, Evaluation, evaluate, without_nan
from jax_interp.dictionaries.forms.cross_layer import CrossLayer
from jax_interp.dictionaries.forms.side_by_side import SideBySide
from jax_interp.dictionaries.replacement import replacement


@dataclasses.dataclass(frozen=True)
class Layer:
    """A source and the target of its layer. `fvu` is of the target, which earlier sources write too; L0 and dead
    features are the source's own."""

    reads: str
    writes: str
    fvu: float
    l0: float
    dead: int


@dataclasses.dataclass(frozen=True)
class Replaced:
    """Of the replacement model, over the predictions that `Evaluation.cross_entropy` counts, in nats; `recovered_*`
    and `kl_score_mean` against the same ablations of all targets."""

    cross_entropy: float
    kl: float
    recovered_mean: float
    recovered_zero: float
    kl_score_mean: float


@dataclasses.dataclass(frozen=True)
class CrossLayerEvaluation:
    """Everything measured in one call."""

    together: Evaluation
    layers: tuple[Layer, ...]
    replacement: Replaced

    def to_json(self) -> dict[str, Any]:
        """The figures of `Evaluation.to_json()`, "layers" and "replacement" beside them."""
        return self.together.to_json() | without_nan(
            {"layers": [dataclasses.asdict(layer) for layer in self.layers]}
            | {"replacement": dataclasses.asdict(self.replacement)}
        )


def evaluate_cross_layer(
    model: Any,
    reads: Sequence[str],
    dictionary: CrossLayer,
    batches: Batches,
    writes: Sequence[str] | None = None,
) -> CrossLayerEvaluation:
    """`evaluate` of all sources and targets side by side, and one more pass for the replacement model. `writes` None:
    it writes what it reads. Raises what `evaluate` and `replacement` raise."""
    targets = reads if writes is None else writes
    together = evaluate(model, reads, SideBySide(dictionary), batches, writes=writes)
    of_layers = zip(reads, targets, together.fvu_by_value.values(), together.by_source, strict=True)
    layers = tuple(Layer(read, written, fvu, one.l0, one.dead) for read, written, fvu, one in of_layers)
    return CrossLayerEvaluation(
        together, layers, of_replacement(model, reads, targets, dictionary, batches, together.cross_entropy)
    )


def of_replacement(
    model: Any,
    reads: Sequence[str],
    writes: Sequence[str],
    dictionary: CrossLayer,
    batches: Batches,
    others: CrossEntropy,
) -> Replaced:
    """The replacement model's loss on the same `batches` that the `others` were measured on. Values that are not kept
    are the model's own."""
    local = replacement(model, reads, writes, dictionary)
    loss = divergence = 0.0
    for tokens, keep in batches:
        tokens, counted = jnp.asarray(tokens), downstream.prediction_mask(keep)
        clean = downstream.log_probabilities(model, tokens)
        log_p = downstream.log_probabilities(dataclasses.replace(local, where=jnp.asarray(keep)), tokens)
        of_batch = negative_log_likelihood(log_p, tokens[:, 1:]), kl_divergence(clean, log_p)
        entropies, divergences = (np.asarray(a, np.float64)[counted].sum() for a in of_batch)
        loss, divergence = loss + entropies / others.predictions, divergence + divergences / others.predictions
    score = lambda worst, ours, best: float("nan") if worst == best else float((worst - ours) / (worst - best))
    return Replaced(
        cross_entropy=float(loss),
        kl=float(divergence),
        recovered_mean=score(others.mean_ablated, loss, others.clean),
        recovered_zero=score(others.zero_ablated, loss, others.clean),
        kl_score_mean=score(others.kl_mean_ablated, divergence, 0.0),
    )
