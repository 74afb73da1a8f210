"""What splicing a dictionary into the model costs the model: cross-entropy and KL, in nats per predicted token.

A prediction counts where the position it is made at and its target are both kept, so padding is neither input nor
target, whatever its token id. Positions that are not kept keep their own activations in every variant.
"""

from __future__ import annotations

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int

from jax_interp.surgery import Mean, Splice, at, edit


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Identity:
    """The dictionary that changes nothing: what the spliced model is checked with."""

    def encode(self, x: Array) -> Array:
        return x

    def decode(self, z: Array) -> Array:
        return z


class SelfCheckError(RuntimeError):
    """Splicing the identity changed the model's loss: the figures of a spliced dictionary would be wrong too."""


@dataclasses.dataclass(frozen=True)
class CrossEntropy:
    """Means over the predictions. `recovered_*` = (ablated - spliced) / (ablated - clean), of means: 1 as good as
    untouched, 0 no better than ablation. Mean ablation hurts less than zero ablation, so its score is lower. A list
    `*_by_position` has the mean at each position that predictions are made from, NaN where there is none.
    """

    predictions: int
    clean: float
    spliced: float
    zero_ablated: float
    mean_ablated: float
    recovered_zero: float
    recovered_mean: float
    kl_spliced: float
    kl_zero_ablated: float
    kl_mean_ablated: float
    clean_by_position: list[float]
    spliced_by_position: list[float]
    zero_by_position: list[float]
    mean_by_position: list[float]


@jax.jit
def log_probabilities(model: Any, tokens: Int[Array, "seq pos"]) -> Float[Array, "seq predicted vocab"]:
    """Of every next token, float32."""
    return jax.nn.log_softmax(model(tokens)[:, :-1].astype(jnp.float32), axis=-1)


@jax.jit
def cross_entropy(
    log_p: Float[Array, "seq predicted vocab"], tokens: Int[Array, "seq pos"]
) -> Float[Array, "seq predicted"]:
    return -jnp.take_along_axis(log_p, tokens[:, 1:, None], axis=-1)[..., 0]


@jax.jit
def kl(p: Float[Array, "seq predicted vocab"], q: Float[Array, "seq predicted vocab"]) -> Float[Array, "seq predicted"]:
    """KL(p ‖ q) from log probabilities."""
    return jnp.sum(jnp.exp(p) * (p - q), axis=-1)


def predictions_kept(keep: Bool[Array, "seq pos"]) -> np.ndarray:
    kept = np.asarray(keep, bool)
    return kept[:, :-1] & kept[:, 1:]


def spliced(model: Any, address: str, dictionary: Any, keep: Bool[Array, "seq pos"]) -> Any:
    """The model with the dictionary's reconstruction in place of the value, where `keep`."""
    return edit(model, at(address, Splice(dictionary), where=keep))


def check_identity(model: Any, address: str, tokens: Int[Array, "seq pos"], keep: Bool[Array, "seq pos"]) -> None:
    """Raise SelfCheckError unless splicing `Identity` gives the clean cross-entropies to the bit."""
    clean = np.asarray(cross_entropy(log_probabilities(model, tokens), tokens))
    same = np.asarray(cross_entropy(log_probabilities(spliced(model, address, Identity(), keep), tokens), tokens))
    if not np.array_equal(clean, same, equal_nan=True):
        raise SelfCheckError(
            f"splicing the identity at {address} changes the cross-entropy by up to {np.abs(clean - same).max():.3g} "
            f"nats; it must not change a bit. Does the model use the value that site({address!r}, …) returns, and cast "
            "nothing around it?"
        )


def of_batch(
    model: Any, address: str, dictionary: Any, tokens: Array, keep: Array, mean: Float[Array, " d"]
) -> dict[str, np.ndarray]:
    """Per-prediction cross-entropies and KLs of each variant, float64 [seq, predicted] on the host."""
    keep = jnp.asarray(keep)
    variants = {
        "spliced": spliced(model, address, dictionary, keep),
        "zero": edit(model, at(address, Mean(jnp.zeros_like(mean)), where=keep)),  # one program with the next
        "mean": edit(model, at(address, Mean(mean), where=keep)),
    }
    reference = log_probabilities(model, tokens)
    out = {"clean": cross_entropy(reference, tokens)}
    for name, variant in variants.items():
        log_p = log_probabilities(variant, tokens)
        out |= {name: cross_entropy(log_p, tokens), f"kl_{name}": kl(reference, log_p)}
    return {name: np.asarray(a, np.float64) for name, a in jax.device_get(out).items()}


def add_by_position(
    total: dict[str, np.ndarray] | None, batch: dict[str, np.ndarray], counted: np.ndarray
) -> dict[str, np.ndarray]:
    """Sums over sequences, by position; batches may differ in length."""
    sums = {name: np.where(counted, a, 0.0).sum(0) for name, a in batch.items()} | {"count": counted.sum(0)}
    if total is None:
        return sums
    length = max(len(sums["count"]), len(total["count"]))
    longer = lambda a: np.pad(a, (0, length - len(a)))
    return {name: longer(total[name]) + longer(a) for name, a in sums.items()}


def cross_entropy_of(total: dict[str, np.ndarray]) -> CrossEntropy:
    n = int(total["count"].sum())
    mean = {name: float(a.sum() / n) if n else float("nan") for name, a in total.items()}

    def by_position(name):
        with np.errstate(invalid="ignore", divide="ignore"):
            return (total[name] / total["count"]).tolist()

    def recovered(ablated):
        loss = mean[ablated] - mean["clean"]
        return (mean[ablated] - mean["spliced"]) / loss if loss else float("nan")

    return CrossEntropy(
        predictions=n,
        clean=mean["clean"],
        spliced=mean["spliced"],
        zero_ablated=mean["zero"],
        mean_ablated=mean["mean"],
        recovered_zero=recovered("zero"),
        recovered_mean=recovered("mean"),
        kl_spliced=mean["kl_spliced"],
        kl_zero_ablated=mean["kl_zero"],
        kl_mean_ablated=mean["kl_mean"],
        clean_by_position=by_position("clean"),
        spliced_by_position=by_position("spliced"),
        zero_by_position=by_position("zero"),
        mean_by_position=by_position("mean"),
    )
