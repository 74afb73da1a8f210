"""What splicing a dictionary into the model costs the model: cross-entropy and KL, in nats per predicted token.

A prediction counts where the position it is made at and its target are both kept, so padding is neither input nor
target, whatever its token id. Positions that are not kept keep their own activations in every variant.

Losses are summed by position and, apart from it, by context length: how many kept tokens of its sequence a prediction
is made from. The two differ where padding stands on the left. A dictionary trained on short sequences can fail on long
ones without its average showing it.
"""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Sequence
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int

from jax_interp.core import objectives
from jax_interp.core.objectives import kl_divergence, negative_log_likelihood
from jax_interp.dictionaries.evaluation.reconstruction import output
from jax_interp.surgery import Mean, Replace, Splice, at, edit, read

Addresses = str | Sequence[str]


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
class Binned:
    """Means over the predictions with edges[i] <= position (or context length) < edges[i + 1]: bins 0, 1, 2-3, 4-7, …;
    NaN where there is none."""

    edges: list[int]
    predictions: list[int]
    clean: list[float]
    spliced: list[float]
    zero_ablated: list[float]
    mean_ablated: list[float]
    kl_spliced: list[float]
    recovered_zero: list[float]
    recovered_mean: list[float]


@dataclasses.dataclass(frozen=True)
class CrossEntropy:
    """Means over the predictions. `recovered_*` = (ablated - spliced) / (ablated - clean), of means: 1 as good as
    untouched, 0 no better than ablation. Mean ablation hurts less than zero ablation, so its score is lower.
    `kl_score_*` = 1 - KL spliced / KL ablated. A list `*_by_position` has the mean at each position that predictions
    are made from, NaN where there is none; `recovered_*_by_position` is the score of these means.
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
    kl_score_zero: float
    kl_score_mean: float
    clean_by_position: list[float]
    spliced_by_position: list[float]
    zero_by_position: list[float]
    mean_by_position: list[float]
    recovered_zero_by_position: list[float]
    recovered_mean_by_position: list[float]
    position_bins: Binned
    context_bins: Binned | None


@jax.jit
def log_probabilities(model: Any, tokens: Int[Array, "seq pos"]) -> Float[Array, "seq predicted vocab"]:
    """Of every next token, in float32 at least."""
    return objectives.log_probabilities(model(tokens)[:, :-1])


def predictions_kept(keep: Bool[Array, "seq pos"]) -> np.ndarray:
    kept = np.asarray(keep, bool)
    return kept[:, :-1] & kept[:, 1:]


def check_identity(model: Any, address: Addresses, tokens: Int[Array, "seq pos"], keep: Bool[Array, "seq pos"]) -> None:
    """Raise SelfCheckError unless splicing `Identity` gives the clean cross-entropies to the bit."""
    clean = np.asarray(negative_log_likelihood(log_probabilities(model, tokens), tokens[:, 1:]))
    same = edit(model, *(at(one, Splice(Identity()), where=keep) for one in names(address)))
    same = np.asarray(negative_log_likelihood(log_probabilities(same, tokens), tokens[:, 1:]))
    if not np.array_equal(clean, same, equal_nan=True):
        raise SelfCheckError(
            f"splicing the identity at {address} changes the cross-entropy by up to {np.abs(clean - same).max():.3g} "
            f"nats; it must not change a bit. Does the model use the value that site({address!r}, …) returns, and cast "
            "nothing around it?"
        )


def names(addresses: Addresses) -> tuple[str, ...]:
    return (addresses,) if isinstance(addresses, str) else tuple(addresses)


def spliced(model: Any, address: str, dictionary: Any, keep: Bool[Array, "seq pos"]) -> Any:
    """The model with the dictionary's reconstruction in place of the value, where `keep`."""
    return edit(model, at(address, Splice(dictionary), where=keep))


def replaced(
    model: Any, reads: Addresses, writes: Addresses, dictionary: Any, tokens: Array, keep: Bool[Array, "seq pos"]
) -> Any:
    """The model with what the dictionary makes of the clean run's `reads` in place of each of `writes`, where `keep`:
    the splice of a transcoder, and of a crosscoder, all of whose values are replaced at once."""
    parts = _written(model, dictionary, tokens, reads=names(reads), writes=names(writes))
    return edit(model, *(at(one, Replace(part), where=keep) for one, part in zip(names(writes), parts, strict=True)))


@partial(jax.jit, static_argnames=("reads", "writes"))
def _written(
    model: Any, dictionary: Any, tokens: Array, reads: tuple[str, ...], writes: tuple[str, ...]
) -> list[Array]:
    values = read(model, *dict.fromkeys(reads + writes), output=False)(tokens)
    x = jnp.concatenate([values[one].reshape(tokens.size, -1) for one in reads], axis=1)
    y_hat = output(dictionary, x, dictionary.encode(x))
    ends = np.cumsum([values[one].size // tokens.size for one in writes])
    parts = jnp.split(y_hat, ends[:-1].tolist(), axis=1)
    return [part.reshape(values[one].shape) for one, part in zip(writes, parts, strict=True)]


def of_batch(
    model: Any,
    address: Addresses,
    dictionary: Any,
    tokens: Array,
    keep: Array,
    mean: Float[Array, " d_out"],
    writes: Addresses | None = None,
) -> dict[str, np.ndarray]:
    """Per-prediction cross-entropies and KLs of each variant, float64 [seq, predicted] on the host. `mean` is that of
    what is written, side by side where these are several values."""
    keep, targets = jnp.asarray(keep), names(writes or address)
    shapes = jax.eval_shape(read(model, *dict.fromkeys(targets), output=False), tokens)
    if writes is None and isinstance(address, str) and len(shapes[address].shape) == 3:
        with_dictionary = spliced(model, address, dictionary, keep)
    else:  # another value, several of them, or one with heads, which the dictionary takes together
        with_dictionary = replaced(model, address, targets, dictionary, tokens, keep)
    ends = np.cumsum([shapes[one].size // tokens.size for one in targets])
    means = [part.reshape(shapes[one].shape[2:]) for one, part in zip(targets, jnp.split(mean, ends[:-1].tolist()))]
    ablated = lambda values: edit(model, *(at(one, Mean(v), where=keep) for one, v in zip(targets, values)))
    variants = {
        "spliced": with_dictionary,
        "zero": ablated([jnp.zeros_like(part) for part in means]),  # one program with the next
        "mean": ablated(means),
    }
    reference = log_probabilities(model, tokens)
    out = {"clean": negative_log_likelihood(reference, tokens[:, 1:])}
    for name, variant in variants.items():
        log_p = log_probabilities(variant, tokens)
        out |= {name: negative_log_likelihood(log_p, tokens[:, 1:]), f"kl_{name}": kl_divergence(reference, log_p)}
    return {name: np.asarray(a, np.float64) for name, a in jax.device_get(out).items()}


def context_length(keep: Bool[Array, "seq pos"]) -> np.ndarray:
    """Of the prediction made at each position but the last: the kept tokens up to there, [seq, predicted]."""
    return np.cumsum(np.asarray(keep, bool), axis=1)[:, :-1]


def add_by_position(
    total: dict[str, np.ndarray] | None, batch: dict[str, np.ndarray], counted: np.ndarray
) -> dict[str, np.ndarray]:
    """Sums over sequences, by position; batches may differ in length."""
    return add_by(total, batch, counted, np.broadcast_to(np.arange(counted.shape[1]), counted.shape))


def add_by(
    total: dict[str, np.ndarray] | None, batch: dict[str, np.ndarray], counted: np.ndarray, place: np.ndarray
) -> dict[str, np.ndarray]:
    """Sums of what is counted, by the whole number `place` [seq, predicted]."""
    length = max(int(place.max(initial=0)) + 1, 0 if total is None else len(total["count"]))
    at = lambda weights: np.bincount(place[counted], weights, minlength=length)
    sums = {name: at(a[counted]) for name, a in batch.items()} | {"count": at(None)}
    if total is None:
        return sums
    longer = lambda a: np.pad(a, (0, length - len(a)))
    return {name: longer(total[name]) + a for name, a in sums.items()}


def cross_entropy_of(total: dict[str, np.ndarray], by_context: dict[str, np.ndarray] | None = None) -> CrossEntropy:
    """From sums by position, and by context length for `context_bins`."""
    mean = {name: float(a) for name, a in _means({name: a.sum() for name, a in total.items()}).items()}
    at = {name: a.tolist() for name, a in _means(total).items()}
    return CrossEntropy(
        predictions=int(total["count"].sum()),
        clean=mean["clean"],
        spliced=mean["spliced"],
        zero_ablated=mean["zero"],
        mean_ablated=mean["mean"],
        recovered_zero=mean["recovered_zero"],
        recovered_mean=mean["recovered_mean"],
        kl_spliced=mean["kl_spliced"],
        kl_zero_ablated=mean["kl_zero"],
        kl_mean_ablated=mean["kl_mean"],
        kl_score_zero=mean["kl_score_zero"],
        kl_score_mean=mean["kl_score_mean"],
        clean_by_position=at["clean"],
        spliced_by_position=at["spliced"],
        zero_by_position=at["zero"],
        mean_by_position=at["mean"],
        recovered_zero_by_position=at["recovered_zero"],
        recovered_mean_by_position=at["recovered_mean"],
        position_bins=binned(total),
        context_bins=None if by_context is None else binned(by_context),
    )


def without_first(total: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    """Sums by position without those of position 0, whose activations are of another kind in most models."""
    return {name: np.concatenate([np.zeros_like(a[:1]), a[1:]]) for name, a in total.items()}


def binned(total: dict[str, np.ndarray]) -> Binned:
    """Of sums by position or context length; bins at both ends that nothing fell into are left out."""
    length = len(total["count"])
    edges = np.array([0] + [2**i for i in range(max(length - 1, 1).bit_length() + 1)])
    sums = {name: np.array([a[i:j].sum() for i, j in itertools.pairwise(edges)]) for name, a in total.items()}
    some = np.flatnonzero(sums["count"])
    low, high = (some[0], some[-1] + 1) if len(some) else (0, 0)
    mean = {name: a.tolist() for name, a in _means({name: a[low:high] for name, a in sums.items()}).items()}
    return Binned(
        edges=edges[low : high + 1].tolist(),
        predictions=sums["count"][low:high].astype(int).tolist(),
        clean=mean["clean"],
        spliced=mean["spliced"],
        zero_ablated=mean["zero"],
        mean_ablated=mean["mean"],
        kl_spliced=mean["kl_spliced"],
        recovered_zero=mean["recovered_zero"],
        recovered_mean=mean["recovered_mean"],
    )


def _means(sums: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    """Means and the scores of these means, elementwise, NaN where nothing is."""
    with np.errstate(invalid="ignore", divide="ignore"):
        mean = {name: np.asarray(a / sums["count"]) for name, a in sums.items() if name != "count"}
        score = lambda ablated, spliced, clean: np.where(
            ablated == clean, np.nan, (ablated - spliced) / (ablated - clean)
        )
        for name in ("zero", "mean"):
            mean[f"recovered_{name}"] = score(mean[name], mean["spliced"], mean["clean"])
            mean[f"kl_score_{name}"] = score(mean[f"kl_{name}"], mean["kl_spliced"], np.zeros(()))
    return mean
