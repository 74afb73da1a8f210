"""The loss of a model with a dictionary spliced in: cross-entropy and KL, in nats per predicted token.

A prediction counts where the position that it is made from and the next position are both kept. Positions that are not
kept have their own activations in every variant.

Losses are summed by position, and by context length: the number of kept tokens that a prediction is made from. The two
differ where padding stands on the left. A dictionary trained on short sequences can fail on long ones, which its mean
loss does not show.
"""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Mapping, Sequence
from functools import partial
from typing import Self

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int

from jax_interp.core import objectives
from jax_interp.core.objectives import kl_divergence, negative_log_likelihood
from jax_interp.dictionaries.sparse_coder import EncoderDecoder, SparseCoder, as_sparse_coder
from jax_interp.surgery import Mean, Model, Replace, Splice, at, edit, read

Addresses = str | Sequence[str]


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Identity(SparseCoder):
    """The dictionary that changes nothing. `evaluate` checks the splicing with it."""

    def encode(self, x: Array) -> Array:
        return x

    def decode(self, z: Array) -> Array:
        return z


class SelfCheckError(RuntimeError):
    """Splicing in the identity changed the model's loss, so the figures of a dictionary would be wrong too."""


@dataclasses.dataclass(frozen=True)
class Binned:
    """Losses by position or by context length, in bins 0, 1, 2-3, 4-7, …

    Bin i has the predictions with edges[i] <= position (or context length) < edges[i + 1]. Every figure is a mean over
    the predictions of a bin, NaN where there is none.
    """

    edges: list[int]
    """Edges of the bins: one more than there are bins."""
    predictions: list[int]
    """Number of predictions."""
    clean: list[float]
    """Cross-entropy of the model itself, in nats."""
    spliced: list[float]
    """Cross-entropy with the dictionary spliced in, in nats."""
    zero_ablated: list[float]
    """Cross-entropy with 0 in place of the value, in nats."""
    mean_ablated: list[float]
    """Cross-entropy with the mean in place of the value, in nats."""
    kl_spliced: list[float]
    """KL from the clean prediction with the dictionary spliced in, in nats."""
    recovered_zero: list[float]
    """(zero_ablated - spliced) / (zero_ablated - clean)."""
    recovered_mean: list[float]
    """(mean_ablated - spliced) / (mean_ablated - clean)."""

    @classmethod
    def from_sums(cls, total: Mapping[str, np.ndarray]) -> Self:
        """From sums by position or by context length. Empty bins at both ends are left out."""
        length = len(total["count"])
        edges = np.array([0] + [2**i for i in range(max(length - 1, 1).bit_length() + 1)])
        sums = {name: np.array([a[i:j].sum() for i, j in itertools.pairwise(edges)]) for name, a in total.items()}
        some = np.flatnonzero(sums["count"])
        low, high = (some[0], some[-1] + 1) if len(some) else (0, 0)
        mean = {name: a.tolist() for name, a in _means({name: a[low:high] for name, a in sums.items()}).items()}
        return cls(
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


@dataclasses.dataclass(frozen=True)
class CrossEntropy:
    """Losses of the model and of its variants, in nats per prediction.

    "Spliced" has what the dictionary writes in place of the value, "zero" and "mean" have 0 and the mean over kept
    tokens. `recovered_*` and `kl_score_*` are scores of means: 1 where splicing changes nothing, 0 where it is no
    better than the ablation. Mean ablation hurts less than zero ablation, so scores against it are lower.
    """

    predictions: int
    """Number of predictions: positions that are kept and whose next position is kept."""
    clean: float
    """Cross-entropy of the model itself."""
    spliced: float
    """Cross-entropy with the dictionary spliced in."""
    zero_ablated: float
    """Cross-entropy with 0 in place of the value."""
    mean_ablated: float
    """Cross-entropy with the mean in place of the value."""
    recovered_zero: float
    """(zero_ablated - spliced) / (zero_ablated - clean): "loss recovered" against zero ablation."""
    recovered_mean: float
    """(mean_ablated - spliced) / (mean_ablated - clean): "loss recovered" against mean ablation."""
    kl_spliced: float
    """KL(clean ‖ spliced) of the next token's distribution."""
    kl_zero_ablated: float
    """KL(clean ‖ zero-ablated)."""
    kl_mean_ablated: float
    """KL(clean ‖ mean-ablated)."""
    kl_score_zero: float
    """1 - kl_spliced / kl_zero_ablated."""
    kl_score_mean: float
    """1 - kl_spliced / kl_mean_ablated."""
    clean_by_position: list[float]
    """`clean` at each position that a prediction is made from; NaN where there is none."""
    spliced_by_position: list[float]
    """`spliced` by position."""
    zero_by_position: list[float]
    """`zero_ablated` by position."""
    mean_by_position: list[float]
    """`mean_ablated` by position."""
    recovered_zero_by_position: list[float]
    """The score of these means, against zero ablation."""
    recovered_mean_by_position: list[float]
    """The score of these means, against mean ablation."""
    position_bins: Binned
    """Losses in bins of positions."""
    context_bins: Binned | None
    """Losses in bins of context lengths: the number of kept tokens that a prediction is made from. It differs from the
    position where padding stands on the left."""

    @classmethod
    def from_sums(cls, total: Mapping[str, np.ndarray], by_context: Mapping[str, np.ndarray] | None = None) -> Self:
        """From sums by position, and by context length for `context_bins`."""
        mean = {name: float(a) for name, a in _means({name: a.sum() for name, a in total.items()}).items()}
        at = {name: a.tolist() for name, a in _means(total).items()}
        return cls(
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
            position_bins=Binned.from_sums(total),
            context_bins=None if by_context is None else Binned.from_sums(by_context),
        )


@jax.jit
def log_probabilities(model: Model, tokens: Int[Array, "seq pos"]) -> Float[Array, "seq predicted vocab"]:
    """Log probabilities of every next token, in float32 at least."""
    return objectives.log_probabilities(model(tokens)[:, :-1])


def prediction_mask(keep: Bool[Array | np.ndarray, "seq pos"]) -> np.ndarray:
    """Which predictions count: those from a kept position and of a kept token, [seq, pos - 1]."""
    kept = np.asarray(keep, bool)
    return kept[:, :-1] & kept[:, 1:]


def check_identity(
    model: Model, address: Addresses, tokens: Int[Array, "seq pos"], keep: Bool[Array, "seq pos"]
) -> None:
    """Raises SelfCheckError where splicing in `Identity` changes a bit of the cross-entropies."""
    clean = np.asarray(negative_log_likelihood(log_probabilities(model, tokens), tokens[:, 1:]))
    same = edit(model, *(at(one, Splice(Identity()), where=keep) for one in address_tuple(address)))
    same = np.asarray(negative_log_likelihood(log_probabilities(same, tokens), tokens[:, 1:]))
    if not np.array_equal(clean, same, equal_nan=True):
        raise SelfCheckError(
            f"splicing the identity at {address} changes the cross-entropy by up to {np.abs(clean - same).max():.3g} "
            f"nats; it must not change a bit. Does the model use the value that site({address!r}, …) returns, and cast "
            "nothing around it?"
        )


def address_tuple(addresses: Addresses) -> tuple[str, ...]:
    """One or several addresses as a tuple."""
    return (addresses,) if isinstance(addresses, str) else tuple(addresses)


def splice(model: Model, address: str, dictionary: EncoderDecoder, keep: Bool[Array, "seq pos"]) -> Model:
    """The model with the dictionary's reconstruction in place of the value, where `keep` is True."""
    return edit(model, at(address, Splice(dictionary), where=keep))


def splice_written(
    model: Model,
    reads: Addresses,
    writes: Addresses,
    dictionary: EncoderDecoder,
    tokens: Array,
    keep: Bool[Array, "seq pos"],
) -> Model:
    """The model with what the dictionary writes, from `reads` of the clean run, in place of each of `writes`, where
    `keep` is True. This is how a transcoder is spliced in, and a crosscoder, whose values are all replaced at once."""
    parts = _written(model, dictionary, tokens, reads=address_tuple(reads), writes=address_tuple(writes))
    return edit(
        model, *(at(one, Replace(part), where=keep) for one, part in zip(address_tuple(writes), parts, strict=True))
    )


@partial(jax.jit, static_argnames=("reads", "writes"))
def _written(
    model: Model, dictionary: EncoderDecoder, tokens: Array, reads: tuple[str, ...], writes: tuple[str, ...]
) -> list[Array]:
    values = read(model, *dict.fromkeys(reads + writes), output=False)(tokens)
    x = jnp.concatenate([values[one].reshape(tokens.size, -1) for one in reads], axis=1)
    coder = as_sparse_coder(dictionary)
    y_hat = coder.output(x, coder.encode(x))
    ends = np.cumsum([values[one].size // tokens.size for one in writes])
    parts = jnp.split(y_hat, ends[:-1].tolist(), axis=1)
    return [part.reshape(values[one].shape) for one, part in zip(writes, parts, strict=True)]


def batch_losses(
    model: Model,
    address: Addresses,
    dictionary: EncoderDecoder,
    tokens: Array,
    keep: Array,
    mean: Float[Array, " d_out"],
    writes: Addresses | None = None,
) -> dict[str, np.ndarray]:
    """The cross-entropies and KLs of one batch, for each variant: float64 [seq, predicted], on the host.

    Args:
      model: the model.
      address: what the dictionary reads.
      dictionary: anything with `encode` and `decode`.
      tokens: [seq, pos].
      keep: [seq, pos]; where it is False, nothing is replaced.
      mean: the mean of what is written, for mean ablation. Several values are side by side.
      writes: what is written. None: what is read.

    Returns:
      "clean", "spliced", "zero", "mean": cross-entropies. "kl_spliced", "kl_zero", "kl_mean": KL from clean.
    """
    keep, targets = jnp.asarray(keep), address_tuple(writes or address)
    shapes = jax.eval_shape(read(model, *dict.fromkeys(targets), output=False), tokens)
    if writes is None and isinstance(address, str) and len(shapes[address].shape) == 3:
        with_dictionary = splice(model, address, dictionary, keep)
    else:  # another value, several of them, or one with heads, which the dictionary takes together
        with_dictionary = splice_written(model, address, targets, dictionary, tokens, keep)
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


def context_length(keep: Bool[Array | np.ndarray, "seq pos"]) -> np.ndarray:
    """For each prediction, the number of kept tokens that it is made from, [seq, predicted]."""
    return np.cumsum(np.asarray(keep, bool), axis=1)[:, :-1]


def add_by_position(
    total: dict[str, np.ndarray] | None, batch: dict[str, np.ndarray], counted: np.ndarray
) -> dict[str, np.ndarray]:
    """The sums by position with one more batch. Batches may differ in length."""
    return add_by_index(total, batch, counted, np.broadcast_to(np.arange(counted.shape[1]), counted.shape))


def add_by_index(
    total: dict[str, np.ndarray] | None, batch: dict[str, np.ndarray], counted: np.ndarray, place: np.ndarray
) -> dict[str, np.ndarray]:
    """The sums with one more batch, by an index.

    Args:
      total: the sums so far, None at first.
      batch: losses of each variant, [seq, predicted].
      counted: which predictions count.
      place: the index of each prediction: its position, or its context length.
    """
    length = max(int(place.max(initial=0)) + 1, 0 if total is None else len(total["count"]))
    at = lambda weights: np.bincount(place[counted], weights, minlength=length)
    sums = {name: at(a[counted]) for name, a in batch.items()} | {"count": at(None)}
    if total is None:
        return sums
    longer = lambda a: np.pad(a, (0, length - len(a)))
    return {name: longer(total[name]) + a for name, a in sums.items()}


def without_position_0(total: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    """Sums by position without position 0, whose activations are of another kind in most models."""
    return {name: np.concatenate([np.zeros_like(a[:1]), a[1:]]) for name, a in total.items()}


def _means(sums: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    """Means, and scores of these means, elementwise. NaN where nothing was counted."""
    with np.errstate(invalid="ignore", divide="ignore"):
        mean = {name: np.asarray(a / sums["count"]) for name, a in sums.items() if name != "count"}
        score = lambda ablated, spliced, clean: np.where(
            ablated == clean, np.nan, (ablated - spliced) / (ablated - clean)
        )
        for name in ("zero", "mean"):
            mean[f"recovered_{name}"] = score(mean[name], mean["spliced"], mean["clean"])
            mean[f"kl_score_{name}"] = score(mean[f"kl_{name}"], mean["kl_spliced"], np.zeros(()))
    return mean
