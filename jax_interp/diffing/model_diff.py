"""What a fine-tuned model has that its base lacks: one crosscoder on the same value of both, and its latents compared.

    pair = Pair(base, tuned, "blocks.2.resid_post")
    config = variants.batch_topk_crosscoder(PAIR, k=32, n_features=4096, steps=2000)      # or variants.crosscoder: L1
    crosscoder = train_dictionary(config, pair, batch_at, run="runs/diff")
    found = compare(crosscoder, pair, batches)
    found.classes.only_1, found.exclusive                   by decoder norms alone, and after latent scaling

`Pair` is a model whose named values are the two models' values, so that the stream, the trainer, its resume and
`evaluate_rows` take it as any other: both models are run in the one step that harvests and learns.
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
from jax_interp.data.harvest import columns, harvest, values
from jax_interp.dictionaries.evaluation.batch_sums import sum_batches
from jax_interp.dictionaries.forms.dictionary import Dictionary, check_one_width
from jax_interp.dictionaries.training.normalisation import fold_scale
from jax_interp.diffing import latent_scaling
from jax_interp.diffing.latent_scaling import Classes, LatentScaling
from jax_interp.surgery import Site, read

PAIR = ("model_0", "model_1")


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True, eq=False)
class Pair:
    """Two models, of any kind, on the same tokens as one model whose values are `model_0` and `model_1`: theirs at
    `address`, or at `address` and `other` where the second calls it differently. Each is run no further than that."""

    base: Any
    tuned: Any
    address: str = dataclasses.field(metadata={"static": True})
    other: str | None = dataclasses.field(default=None, metadata={"static": True})

    def __call__(self, tokens: Int[Array, "seq pos"], *, taps: tuple = ()) -> Any:
        site, other = Site.open(taps), self.other or self.address
        a = site("model_0", read(self.base, self.address, output=False)(tokens)[self.address])
        b = site("model_1", read(self.tuned, other, output=False)(tokens)[other])
        return site.close((a, b))


@dataclasses.dataclass(frozen=True)
class ModelDiff:
    """Over features, in the scaled values that crosscoders are trained on (each model's with E‖x‖² = d).

    `relative_norms` is ‖d^1‖ / (‖d^0‖ + ‖d^1‖), `norm_difference` Minder et al.'s other scale, `classes` (only_0,
    shared, only_1) by the latter's published bounds. `cosine` is that of the two directions, NaN where one is 0.
    `scaling` is latent scaling of model 1 against model 0, NaN for latents that never fired on these batches;
    `exclusive` are the latents of `classes.only_1` that it confirms, the truly model-specific ones. `fvu` is each
    model's, over the same tokens.
    """

    relative_norms: Float[np.ndarray, " feature"]
    norm_difference: Float[np.ndarray, " feature"]
    classes: Classes
    cosine: Float[np.ndarray, " feature"]
    scaling: LatentScaling
    exclusive: Bool[np.ndarray, " feature"]
    fvu: tuple[float, float]

    @property
    def counts(self) -> dict[str, int]:
        """How many latents of each class, and how many of `only_1` latent scaling confirms."""
        kinds = {name: int(getattr(self.classes, name).sum()) for name in ("only_0", "shared", "only_1")}
        return kinds | {"exclusive": int(self.exclusive.sum())}


def compare(
    crosscoder: Dictionary, pair: Pair, batches: Sequence[tuple[Int[Array, "seq pos"], Bool[Array, "seq pos"]]]
) -> ModelDiff:
    """Compare the two models by the latents of `crosscoder`, which works on raw activations (as exported), over
    `batches` of (tokens, keep). These are gone through twice: for the scales, then for the latents. UserError where
    `keep` leaves nothing, and where the two models' values differ in width."""
    if crosscoder.write_sites != 2:
        raise UserError(f"a model diff compares two written values, this dictionary has {crosscoder.write_sites}")
    if len(batches):
        of_each = jax.eval_shape(lambda pair, tokens: values(pair, PAIR, tokens), pair, batches[0][0])
        check_one_width(PAIR, [value.shape[1] for value in of_each])
    moments = sum_batches(_kept(pair, batches), _moments)
    mean_square = moments["square"] / moments["rows"]
    scale = np.sqrt(crosscoder.W_dec.shape[1] / 2 / mean_square)
    spread = scale**2 * (mean_square - np.sum((moments["sum"] / moments["rows"]) ** 2, axis=1))
    scaled = in_scaled_units(crosscoder, jnp.asarray(scale, crosscoder.W_dec.dtype))
    factors = jnp.asarray(np.repeat(scale, crosscoder.W_dec.shape[1] // 2)[None], jnp.float32)
    sums = sum_batches(_kept(pair, batches), lambda rows: _sums(scaled, rows.astype(jnp.float32) * factors))
    scaling = latent_scaling.latent_scaling_of(sums["scaling"], scaled.W_dec)
    difference = latent_scaling.norm_difference(scaled.W_dec)
    kinds = latent_scaling.classes(difference)
    a, b = np.moveaxis(np.asarray(scaled.W_dec, np.float64).reshape(scaled.n_features, 2, -1), 1, 0)
    with np.errstate(invalid="ignore"):
        cosine = np.sum(a * b, axis=1) / (np.linalg.norm(a, axis=1) * np.linalg.norm(b, axis=1))
    return ModelDiff(
        relative_norms=latent_scaling.relative_norms(scaled.W_dec),
        norm_difference=difference,
        classes=kinds,
        cosine=cosine,
        scaling=scaling,
        exclusive=kinds.only_1 & latent_scaling.truly_exclusive(scaling),
        fvu=tuple((sums["error"] / moments["rows"] / spread).tolist()),
    )


def in_scaled_units(crosscoder: Dictionary, scale: Float[Array, "2"]) -> Dictionary:
    """The crosscoder for values that have been multiplied by `scale`, each model's by its own: what a norm or a cosine
    of its decoder is to be compared in, since the raw activations of one model can be larger throughout."""
    width = crosscoder.W_dec.shape[1] // 2
    back = columns(1 / scale, (width, width))
    return fold_scale(crosscoder, back, back, 1 / scale[0])


def _kept(pair: Pair, batches: Iterable[tuple[Array, Array]]) -> Iterator[Float[Array, "row d"]]:
    """The two models' values side by side where `keep`, in pieces of one size and a last smaller one."""
    held: list[np.ndarray] = []
    size = 0
    for tokens, keep in batches:
        rows = np.asarray(_gather(pair, tokens))
        size = size or len(rows)
        held.append(rows[np.asarray(keep, bool).reshape(-1)])
        if sum(map(len, held)) >= size:
            together = np.concatenate(held)
            yield jnp.asarray(together[:size])
            held = [together[size:]]
    if held and len(rest := np.concatenate(held)):
        yield jnp.asarray(rest)


@jax.jit
def _gather(pair: Pair, tokens: Int[Array, "seq pos"]) -> Float[Array, "row d"]:
    return harvest(pair, PAIR, tokens)


@jax.jit
def _moments(rows: Float[Array, "row d"]) -> dict[str, Array]:
    h = rows.reshape(len(rows), 2, -1).astype(jnp.float32)
    return {"square": jnp.sum(h * h, axis=(0, 2)), "sum": jnp.sum(h, axis=0), "rows": jnp.asarray(len(rows), jnp.int32)}


@jax.jit
def _sums(crosscoder: Dictionary, rows: Float[Array, "row d"]) -> dict[str, Any]:
    error = (rows - crosscoder(rows)).reshape(len(rows), 2, -1)
    return {"scaling": latent_scaling.scaling_sums(crosscoder, rows), "error": jnp.sum(error * error, axis=(0, 2))}
