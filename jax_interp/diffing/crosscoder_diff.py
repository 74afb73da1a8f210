"""Compare a fine-tuned model with its base model: train one crosscoder on a value of both, and compare its latents.

    pair = ModelPair(base, tuned, "blocks.2.resid_post")
    config = variants.batch_topk_crosscoder(PAIR_ADDRESSES, k=32, n_features=4096, steps=2000)
    crosscoder = train_dictionary(config, pair, batch_at, run="runs/diff")
    found = model_diff(crosscoder, pair, batches)
    found.classes.only_1        latents of the fine-tuned model only, judged by their decoder norms
    found.exclusive             the latents of only_1 that latent scaling confirms

`ModelPair` is a model with two named values, one from each model. Everything that trains on a model's values can train
on it. Both models run inside the training step.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Iterator, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int

from jax_interp.core.errors import UserError
from jax_interp.core.pytrees import register_dataclass
from jax_interp.data.harvest import TokenBatch, columns, harvest, values
from jax_interp.dictionaries.evaluation.batch_sums import sum_batches
from jax_interp.dictionaries.forms.dictionary import Dictionary, check_one_width
from jax_interp.dictionaries.training.normalisation import fold_scale
from jax_interp.diffing.exclusive_latents import (
    LatentScaling,
    NormClasses,
    classify,
    norm_difference,
    relative_norms,
    scaling_from_sums,
    scaling_sums,
    truly_exclusive,
)
from jax_interp.surgery import Model, Site, values_at

PAIR_ADDRESSES = ("model_0", "model_1")
"""The addresses of the two values of a `ModelPair`."""


@register_dataclass
@dataclasses.dataclass(frozen=True, eq=False)
class ModelPair:
    """Two models on the same tokens, as one model whose values are `model_0` and `model_1`.

    Args:
      base: the first model, of any kind.
      tuned: the second model, of any kind.
      address: the address of the value in both models. A model runs only up to this value.
      other: the address in the second model, if it differs from `address`.
    """

    base: Model
    tuned: Model
    address: str = dataclasses.field(metadata={"static": True})
    other: str | None = dataclasses.field(default=None, metadata={"static": True})

    def __call__(self, tokens: Int[Array, "seq pos"], *, taps: tuple = ()) -> Any:
        site, other = Site.open(taps), self.other or self.address
        a = site("model_0", values_at(self.base, self.address)(tokens)[self.address])
        b = site("model_1", values_at(self.tuned, other)(tokens)[other])
        return site.close((a, b))


@dataclasses.dataclass(frozen=True)
class ModelDiff:
    """Two models compared by the latents of a crosscoder.

    Norms and cosines are in units of scaled values: E‖x‖² = d for each model. Crosscoders are trained on such values.

    Args:
      relative_norms: ‖d^1‖ / (‖d^0‖ + ‖d^1‖).
      norm_difference: the relative norm difference of Minder et al. 2025.
      classes: the class of each latent, by `norm_difference` and its published bounds.
      cosine: the cosine between the two decoder directions. NaN if one of them is 0.
      scaling: latent scaling with model 1 as the reference. NaN for latents that never fired on these batches.
      exclusive: the latents of `classes.only_1` that latent scaling confirms.
      fvu: the fraction of variance unexplained for each model, over the same tokens.
    """

    relative_norms: Float[np.ndarray, " feature"]
    norm_difference: Float[np.ndarray, " feature"]
    classes: NormClasses
    cosine: Float[np.ndarray, " feature"]
    scaling: LatentScaling
    exclusive: Bool[np.ndarray, " feature"]
    fvu: tuple[float, float]

    @property
    def counts(self) -> dict[str, int]:
        """The number of latents in each class, and the number of exclusive latents."""
        masks = dataclasses.asdict(self.classes) | {"exclusive": self.exclusive}
        return {name: int(mask.sum()) for name, mask in masks.items()}


def model_diff(crosscoder: Dictionary, pair: ModelPair, batches: Sequence[TokenBatch]) -> ModelDiff:
    """Compare two models by the latents of a crosscoder.

    Args:
      crosscoder: a crosscoder trained on the two values of `pair`. It works on raw activations, as exported.
      pair: the two models.
      batches: pairs `(tokens, keep)`. They are read twice: once for the scales of the values, and once for the latents.

    Returns:
      Norms, classes, cosines, latent scaling and FVU.

    Raises:
      UserError: the crosscoder does not write two values, the models' values differ in width, or `keep` leaves nothing.
    """
    if crosscoder.write_sites != 2:
        raise UserError(
            f"a model diff needs a crosscoder with two written values; this dictionary writes {crosscoder.write_sites}"
        )
    if len(batches):
        shapes = jax.eval_shape(lambda pair, tokens: values(pair, PAIR_ADDRESSES, tokens), pair, batches[0][0])
        check_one_width(PAIR_ADDRESSES, [value.shape[1] for value in shapes])
    moments = sum_batches(_kept_rows(pair, batches), _moments)
    mean_square = moments["square"] / moments["rows"]
    scale = np.sqrt(crosscoder.W_dec.shape[1] / 2 / mean_square)
    variance = scale**2 * (mean_square - np.sum((moments["sum"] / moments["rows"]) ** 2, axis=1))
    scaled = in_scaled_units(crosscoder, jnp.asarray(scale, crosscoder.W_dec.dtype))
    factors = jnp.asarray(np.repeat(scale, crosscoder.W_dec.shape[1] // 2)[None], jnp.float32)
    sums = sum_batches(_kept_rows(pair, batches), lambda rows: _sums(scaled, rows.astype(jnp.float32) * factors))
    scaling = scaling_from_sums(sums["scaling"], scaled.W_dec)
    difference = norm_difference(scaled.W_dec)
    classes = classify(difference)
    return ModelDiff(
        relative_norms=relative_norms(scaled.W_dec),
        norm_difference=difference,
        classes=classes,
        cosine=_cosines(scaled),
        scaling=scaling,
        exclusive=classes.only_1 & truly_exclusive(scaling),
        fvu=tuple((sums["error"] / moments["rows"] / variance).tolist()),
    )


def _cosines(crosscoder: Dictionary) -> Float[np.ndarray, " feature"]:
    """The cosine between the two directions of each latent, one per model."""
    W = np.asarray(crosscoder.W_dec, np.float64).reshape(crosscoder.n_features, 2, -1)
    a, b = W[:, 0], W[:, 1]
    with np.errstate(invalid="ignore"):
        return np.sum(a * b, axis=1) / (np.linalg.norm(a, axis=1) * np.linalg.norm(b, axis=1))


def in_scaled_units(crosscoder: Dictionary, scale: Float[Array, "2"]) -> Dictionary:
    """Convert a crosscoder for raw values into a crosscoder for values that are multiplied by `scale`.

    Decoders are compared in scaled units, because all activations of one model can be larger than those of the other.

    Args:
      crosscoder: a crosscoder for raw values.
      scale: the factor for the values of each model.
    """
    width = crosscoder.W_dec.shape[1] // 2
    back = columns(1 / scale, (width, width))
    return fold_scale(crosscoder, back, back, 1 / scale[0])


def _kept_rows(pair: ModelPair, batches: Iterable[TokenBatch]) -> Iterator[Float[Array, "row d"]]:
    """The values of both models side by side at kept positions, in batches of one size. The last may be smaller."""
    waiting: list[np.ndarray] = []
    size = 0
    for tokens, keep in batches:
        rows = np.asarray(_gather(pair, tokens))
        size = size or len(rows)
        waiting.append(rows[np.asarray(keep, bool).reshape(-1)])
        if sum(map(len, waiting)) >= size:
            together = np.concatenate(waiting)
            yield jnp.asarray(together[:size])
            waiting = [together[size:]]
    if waiting and len(rest := np.concatenate(waiting)):
        yield jnp.asarray(rest)


@jax.jit
def _gather(pair: ModelPair, tokens: Int[Array, "seq pos"]) -> Float[Array, "row d"]:
    return harvest(pair, PAIR_ADDRESSES, tokens)


@jax.jit
def _moments(rows: Float[Array, "row d"]) -> dict[str, Array]:
    x = rows.reshape(len(rows), 2, -1).astype(jnp.float32)
    return {"square": jnp.sum(x * x, axis=(0, 2)), "sum": jnp.sum(x, axis=0), "rows": jnp.asarray(len(rows), jnp.int32)}


@jax.jit
def _sums(crosscoder: Dictionary, rows: Float[Array, "row d"]) -> dict[str, Any]:
    error = (rows - crosscoder(rows)).reshape(len(rows), 2, -1)
    return {"scaling": scaling_sums(crosscoder, rows), "error": jnp.sum(error * error, axis=(0, 2))}
