"""The loss of a model with a dictionary spliced in: cross-entropy and KL, in nats per predicted token.

A prediction counts if `keep` is True for its position and for the next position. Activations where `keep` is False are
never replaced.

Losses are summed by position, and by context length. The context length is the number of kept tokens up to the
position. The two differ if padding is on the left. A dictionary that was trained on short sequences can fail on long
ones, which its mean loss does not show.
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
from numpy.typing import ArrayLike

from jax_interp.core import objectives
from jax_interp.core.errors import UserError
from jax_interp.core.objectives import kl_divergence, negative_log_likelihood
from jax_interp.core.processes import to_host
from jax_interp.core.pytrees import register_dataclass
from jax_interp.dictionaries.sparse_coder import EncoderDecoder, SparseCoder, as_sparse_coder
from jax_interp.surgery import Mean, Model, Replace, Splice, at, canonical, edit, values_at

Addresses = str | Sequence[str]
MEASURABLE = 1e-4
"""An ablation that raises a loss by less, in nats, gives no scale for a score."""


@register_dataclass
@dataclasses.dataclass(frozen=True)
class Identity(SparseCoder):
    """The dictionary that changes nothing. `evaluate` checks the splicing with it."""

    def encode(self, x: Array) -> Array:
        return x

    def decode(self, z: Array) -> Array:
        return z


class SelfCheckError(RuntimeError):
    """Raised if splicing in the identity changes the model's loss. The figures of a dictionary would then be wrong."""


@dataclasses.dataclass(frozen=True)
class Binned:
    """Losses by position or by context length, in bins 0, 1, 2-3, 4-7, …

    Bin i has the predictions with edges[i] <= position (or context length) < edges[i + 1]. Each figure is a mean over
    the predictions of a bin. It is NaN if the bin is empty.
    """

    edges: list[int]
    """Edges of the bins, in ascending order. There is one more edge than there are bins."""
    predictions: list[int]
    """Number of predictions in each bin."""
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
        """Compute the figures from sums by position or by context length. Empty bins at both ends are left out."""
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

    The value is replaced by the reconstruction ("spliced"), by 0 ("zero"), or by its mean over kept tokens ("mean").
    `recovered_*` and `kl_score_*` are computed from mean losses. They are 1 if splicing changes nothing, and 0 if it is
    as bad as the ablation. Mean ablation hurts less than zero ablation, so scores against it are lower. A score is NaN
    if the ablation does not hurt: it then has no scale. `undefined` has the reason.
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
    """`clean` at each position. NaN if no prediction counts there."""
    spliced_by_position: list[float]
    """`spliced` at each position."""
    zero_by_position: list[float]
    """`zero_ablated` at each position."""
    mean_by_position: list[float]
    """`mean_ablated` at each position."""
    recovered_zero_by_position: list[float]
    """`recovered_zero` at each position."""
    recovered_mean_by_position: list[float]
    """`recovered_mean` at each position."""
    position_bins: Binned
    """Losses in bins of positions."""
    context_bins: Binned | None
    """Losses in bins of context lengths. The context length is the number of kept tokens up to the position. It differs
    from the position if padding is on the left."""
    undefined: dict[str, str] = dataclasses.field(default_factory=dict)
    """For each of the figures above that is NaN or infinite, the reason."""

    @classmethod
    def from_sums(cls, total: Mapping[str, np.ndarray], by_context: Mapping[str, np.ndarray] | None = None) -> Self:
        """Compute the figures from sums by position, and from sums by context length for `context_bins`."""
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
            undefined=_reasons(mean),
        )


def _reasons(mean: Mapping[str, float]) -> dict[str, str]:
    """Why figures of `CrossEntropy` are NaN or infinite, by their names."""
    reasons = {}
    for name in ("zero", "mean"):
        hurts, moves = mean[name] - mean["clean"], mean[f"kl_{name}"]
        if np.isnan(mean[f"recovered_{name}"]):
            reasons[f"recovered_{name}"] = f"{name} ablation changes the loss by {hurts:+.2g} nats: it does not hurt"
        if np.isnan(mean[f"kl_score_{name}"]):
            reasons[f"kl_score_{name}"] = f"{name} ablation moves the predictions by {moves:.2g} nats only"
    infinite = "a token that the model predicts has probability 0"
    for name in ("kl_spliced", "kl_zero", "kl_mean"):
        if np.isinf(mean[name]):
            reasons[name if name == "kl_spliced" else f"{name}_ablated"] = infinite
    for name in ("spliced", "zero", "mean"):
        if np.isinf(mean[name]):
            reasons[name if name == "spliced" else f"{name}_ablated"] = "a token of the text has probability 0"
    return reasons


@jax.jit
def log_probabilities(model: Model, tokens: Int[Array, "seq pos"]) -> Float[Array, "seq predicted vocab"]:
    """Log probabilities of every next token, in float32 or float64."""
    return objectives.log_probabilities(model(tokens)[:, :-1])


def prediction_mask(keep: Bool[Array | np.ndarray, "seq pos"]) -> np.ndarray:
    """A mask [seq, pos - 1] of the predictions that count: their position and the next position are both kept."""
    kept = np.asarray(keep, bool)
    return kept[:, :-1] & kept[:, 1:]


def check_identity(
    model: Model, address: Addresses, tokens: Int[Array, "seq pos"], keep: Bool[Array, "seq pos"]
) -> None:
    """Raise SelfCheckError if splicing in `Identity` changes any bit of the cross-entropies, and UserError if the
    model's own cross-entropy is NaN."""
    clean = np.asarray(negative_log_likelihood(log_probabilities(model, tokens), tokens[:, 1:]))
    if np.isnan(clean[prediction_mask(keep)]).any():
        raise UserError(
            "the model itself has a loss of NaN on the first batch, before anything is replaced: look for weights that "
            "are NaN or infinite, or for an overflow in its dtype"
        )
    same = edit(model, *(at(one, Splice(Identity()), where=keep) for one in address_tuple(address)))
    same = np.asarray(negative_log_likelihood(log_probabilities(same, tokens), tokens[:, 1:]))
    if not np.array_equal(clean, same, equal_nan=True):
        raise SelfCheckError(
            f"splicing the identity at {address} changes the cross-entropy by up to {np.abs(clean - same).max():.3g} "
            f"nats; it must not change a bit. Check that the model uses the value that site({address!r}, …) returns, "
            "and that it does not cast this value"
        )


def address_tuple(addresses: Addresses) -> tuple[str, ...]:
    """Return one address or several addresses as a tuple, in the spelling of the package."""
    return canonical((addresses,) if isinstance(addresses, str) else tuple(addresses))


def splice(model: Model, address: str, dictionary: EncoderDecoder, keep: Bool[Array, "seq pos"]) -> Model:
    """Replace the value at `address` by its reconstruction where `keep` is True."""
    return edit(model, at(address, Splice(dictionary), where=keep))


def splice_written(
    model: Model,
    reads: Addresses,
    writes: Addresses,
    dictionary: EncoderDecoder,
    tokens: Array,
    keep: Bool[Array, "seq pos"],
) -> Model:
    """Replace the values at `writes` by what the dictionary writes, where `keep` is True. The dictionary reads the
    values at `reads` in the clean run. Transcoders and crosscoders are spliced in this way; all values of a crosscoder
    are replaced at once."""
    parts = _written(model, dictionary, tokens, reads=address_tuple(reads), writes=address_tuple(writes))
    return edit(
        model, *(at(one, Replace(part), where=keep) for one, part in zip(address_tuple(writes), parts, strict=True))
    )


@partial(jax.jit, static_argnames=("reads", "writes"))
def _written(
    model: Model, dictionary: EncoderDecoder, tokens: Array, reads: tuple[str, ...], writes: tuple[str, ...]
) -> list[Array]:
    values = values_at(model, *dict.fromkeys(reads + writes))(tokens)
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
    """The cross-entropies and KLs of one batch for each variant of the model, as float64 [seq, predicted] on the host.

    Args:
      model: the model.
      address: the address that the dictionary reads, or several.
      dictionary: an object with `encode` and `decode`.
      tokens: the token ids, [seq, pos].
      keep: a mask [seq, pos]. Where it is False, nothing is replaced.
      mean: the mean of the written value, for mean ablation. The means of several values are side by side.
      writes: the address that the dictionary writes, or several. None: the same as `address`.

    Returns:
      "clean", "spliced", "zero", "mean": cross-entropies. "kl_spliced", "kl_zero", "kl_mean": KL(clean ‖ variant).
    """
    keep, targets = jnp.asarray(keep), address_tuple(writes or address)
    shapes = jax.eval_shape(values_at(model, *dict.fromkeys(targets)), tokens)
    if writes is None and isinstance(address, str) and len(shapes[address].shape) == 3:
        with_dictionary = splice(model, address, dictionary, keep)
    else:  # the dictionary writes another value, several values, or a value with a head axis
        with_dictionary = splice_written(model, address, targets, dictionary, tokens, keep)
    ends = np.cumsum([shapes[one].size // tokens.size for one in targets])
    means = [part.reshape(shapes[one].shape[2:]) for one, part in zip(targets, jnp.split(mean, ends[:-1].tolist()))]
    ablated = lambda values: edit(model, *(at(one, Mean(v), where=keep) for one, v in zip(targets, values)))
    variants = {
        "spliced": with_dictionary,
        "zero": ablated([jnp.zeros_like(part) for part in means]),  # an array, so that "mean" compiles nothing new
        "mean": ablated(means),
    }
    reference = log_probabilities(model, tokens)
    out = {"clean": negative_log_likelihood(reference, tokens[:, 1:])}
    for name, variant in variants.items():
        log_p = log_probabilities(variant, tokens)
        out |= {name: negative_log_likelihood(log_p, tokens[:, 1:]), f"kl_{name}": kl_divergence(reference, log_p)}
    return {name: np.asarray(a, np.float64) for name, a in to_host(out).items()}


def context_length(keep: Bool[Array | np.ndarray, "seq pos"]) -> np.ndarray:
    """For each prediction, the number of kept tokens up to its position, [seq, predicted]."""
    return np.cumsum(np.asarray(keep, bool), axis=1)[:, :-1]


def add_by_position(
    total: dict[str, np.ndarray] | None, batch: dict[str, np.ndarray], counted: np.ndarray
) -> dict[str, np.ndarray]:
    """Add one batch to sums by position. Batches may differ in length."""
    return add_by_index(total, batch, counted, np.broadcast_to(np.arange(counted.shape[1]), counted.shape))


def add_by_index(
    total: dict[str, np.ndarray] | None, batch: dict[str, np.ndarray], counted: np.ndarray, place: np.ndarray
) -> dict[str, np.ndarray]:
    """Add one batch to sums by index.

    Args:
      total: the sums so far. None before the first batch.
      batch: the losses of each variant, [seq, predicted].
      counted: a mask of the predictions that count.
      place: the index of each prediction: its position or its context length.
    """
    length = max(int(place.max(initial=0)) + 1, 0 if total is None else len(total["count"]))
    at = lambda weights: np.bincount(place[counted], weights, minlength=length)
    sums = {name: at(a[counted]) for name, a in batch.items()} | {"count": at(None)}
    if total is None:
        return sums
    longer = lambda a: np.pad(a, (0, length - len(a)))
    return {name: longer(total[name]) + a for name, a in sums.items()}


def without_position_0(total: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    """Set the sums at position 0 to 0. In most models, activations there differ strongly from all others."""
    return {name: np.concatenate([np.zeros_like(a[:1]), a[1:]]) for name, a in total.items()}


def score(ablated: ArrayLike, ours: ArrayLike, clean: ArrayLike) -> np.ndarray:
    """(ablated - ours) / (ablated - clean), elementwise. NaN where the ablation hurts by less than `MEASURABLE`."""
    ablated, ours, clean = (np.asarray(a, np.float64) for a in (ablated, ours, clean))
    with np.errstate(invalid="ignore", divide="ignore"):
        hurts = ablated - clean
        return np.where(hurts >= MEASURABLE, (ablated - ours) / hurts, np.nan)


def _means(sums: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    """Means, and scores computed from the means, elementwise. NaN where nothing was counted, and where `score` is."""
    with np.errstate(invalid="ignore", divide="ignore"):
        mean = {name: np.asarray(a / sums["count"]) for name, a in sums.items() if name != "count"}
        for name in ("zero", "mean"):
            mean[f"recovered_{name}"] = score(mean[name], mean["spliced"], mean["clean"])
            mean[f"kl_score_{name}"] = score(mean[f"kl_{name}"], mean["kl_spliced"], np.zeros(()))
    return mean
