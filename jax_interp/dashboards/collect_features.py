"""`collect_features` and `collect_units`: everything that a page shows, from one pass over a text.

    data = collect_features(model, "blocks.6.resid_pre", sae, batches, unembed=unembedding(model))
    data = collect_units(lambda model, tokens: harvest(model, "blocks.1.mlp.post", tokens), model, batches)

Examples are found in the pass itself. Only effects of ablations (`loss_examples`, `token_examples`) read the text a
second time, without the model, for the sequences of the examples.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Int, PyTree

from jax_interp.core.errors import UserError
from jax_interp.core.pytrees import register_dataclass
from jax_interp.dashboards.collector import READING, Batches, Reading, ScoreFunction, Scores, collect
from jax_interp.dashboards.decoder_directions import Unembedding, decoder_neighbours, logit_lens
from jax_interp.dashboards.effects import READ_AGAIN, with_loss_effects, with_token_effects
from jax_interp.dashboards.feature_data import Examples, FeatureData, Neighbours
from jax_interp.dashboards.features import Encoder, Latents
from jax_interp.dashboards.options import DEFAULT_OPTIONS, FEATURES, UNITS, Names, PageOptions
from jax_interp.dashboards.statistics.activity import Activity, KeptPositions, UnitActivity
from jax_interp.dashboards.statistics.co_firing import CoFiring, most_alike, most_alike_in_samples
from jax_interp.dashboards.statistics.pieces import InPieces
from jax_interp.dashboards.statistics.windows import Sample, TopWindows, UniformWindows
from jax_interp.dashboards.windows import Windows
from jax_interp.data.harvest import Addresses
from jax_interp.surgery.contract import Model
from jax_interp.surgery.taps import static


def collect_features(
    model: Model,
    address: Addresses,
    dictionary: Encoder,
    batches: Batches,
    options: PageOptions = DEFAULT_OPTIONS,
    *,
    unembed: Unembedding | None = None,
    names: Names = FEATURES,
    reading: Reading = READING,
) -> FeatureData:
    """Collect everything that a page shows about the features of a dictionary, in one pass over a text.

    Args:
      model: the model that the dictionary was trained on.
      address: the address that the dictionary reads, or several.
      dictionary: any dictionary that works on raw activations.
      batches: pairs `(tokens, keep)`. They are read one at a time. Effects of ablations read them twice.
      options: which features, how many examples, and which effects.
      unembed: the unembedding, for promoted and suppressed tokens: `unembedding(model)`, or a matrix. None: these
        tokens are left out. It must take what the dictionary writes; that is the residual stream in the usual case.
      names: names for the reader.
      reading: where the state of the pass is saved, and whether progress is shown.

    Returns:
      The data of the page, without the text of its tokens (`with_strings`).

    Raises:
      UserError: the dictionary has no such feature, the text or the scores are not right (see `collect`), or an effect
        cannot be measured with this dictionary.
    """
    address = address if isinstance(address, str) else tuple(address)
    total = dictionary.W_dec.shape[0]
    chosen = _chosen(options, total)
    scores = Latents(dictionary, None if options.units is None else jnp.asarray(chosen, jnp.int32), address)
    if options.loss_examples and not isinstance(address, str):
        raise UserError(f"loss_examples: the dictionary reads {address}; a feature is ablated where one value is read")
    data = _collected(scores, model, batches, options, reading, chosen)
    data = dataclasses.replace(
        data, name=names.unit, title=names.title, model=names.model, text=names.text,
        address=address if isinstance(address, str) else " ".join(address),
    )  # fmt: skip
    if options.token_examples:
        data = with_token_effects(data, scores, model, batches, options)
    if options.loss_examples:
        assert isinstance(address, str)
        data = with_loss_effects(data, model, address, dictionary, batches, options)  # type: ignore[arg-type]
    directions = dictionary.W_dec.reshape(total, -1)
    if options.neighbours and total > 1:
        near = decoder_neighbours(directions, chosen, options.neighbours, options.piece)
        data = dataclasses.replace(data, neighbours=near)
    if unembed is not None and options.promoted:
        lens = logit_lens(directions, chosen, unembed, options.promoted, options.logit_bins, options.piece)
        promoted, suppressed, histogram = lens
        data = dataclasses.replace(data, promoted=promoted, suppressed=suppressed, logit_histogram=histogram)
    return data


def collect_units(
    scores: ScoreFunction,
    model: PyTree,
    batches: Batches,
    options: PageOptions = DEFAULT_OPTIONS,
    *,
    address: str = "",
    names: Names = UNITS,
    reading: Reading = READING,
) -> FeatureData:
    """Collect what units of any kind fire on: components, neurons, heads, scores of probes.

    Args:
      scores: the score function, as in `collect`.
      model: its first argument.
      batches: pairs `(tokens, keep)`.
      options: as in `collect_features`. Units have no decoder, so there are no neighbours, promoted tokens and losses.
      address: where the units are, for the reader.
      names: names for the reader.
      reading: where the state of the pass is saved, and whether progress is shown.

    Returns:
      The data of the page.

    Raises:
      UserError: as `collect_features`.

    Example:
        heads = lambda model, tokens: jnp.linalg.norm(
            read(model, "blocks.3.attn.result")(tokens)[1]["blocks.3.attn.result"], axis=-1).reshape(tokens.size, -1)
        data = collect_units(heads, model, batches, names=Names("head", "Heads of layer 3"))
    """
    if options.loss_examples:
        raise UserError(
            "loss_examples: units of a score function cannot be ablated; give collect_features a dictionary"
        )
    chosen = None if options.units is None else _chosen(options, 2**31)
    if jax.tree_util.all_leaves([scores]):  # a plain function
        scores = jax.tree_util.Partial(scores)
    if options.units is not None:
        scores = Chosen(scores, jnp.asarray(chosen), max(options.units))
    data = _collected(scores, model, batches, options, reading, chosen)
    data = dataclasses.replace(
        data, name=names.unit, title=names.title, model=names.model, text=names.text, address=address
    )  # fmt: skip
    return with_token_effects(data, scores, model, batches, options) if options.token_examples else data


@register_dataclass
@dataclasses.dataclass(frozen=True)
class Chosen:
    """A score function with some of the units of another one. `last` is the largest index of a unit."""

    scores: ScoreFunction
    units: Int[Array, " unit"]
    last: int = static()

    def __call__(self, model: PyTree, tokens: Int[Array, "seq pos"]) -> Scores:
        given = self.scores(model, tokens)
        given = given if isinstance(given, Scores) else Scores(given)
        if self.last >= (total := given.values.shape[1]):
            raise UserError(f"unit {self.last} of {total}: give units from 0 to {total - 1}")
        activations = None if given.activations is None else given.activations[:, self.units]
        return Scores(given.values[:, self.units], activations, given.logits)


def _chosen(options: PageOptions, total: int) -> Int[np.ndarray, " unit"]:
    if options.units is None:
        return np.arange(total)
    chosen = np.asarray(options.units)
    if not chosen.size or chosen.dtype.kind not in "iu" or len(np.unique(chosen)) != len(chosen):
        raise UserError(f"units={options.units}: give different indices of units")
    if chosen.min() < 0 or chosen.max() >= total:
        raise UserError(f"units={options.units} of {total}: give units from 0 to {total - 1}")
    return chosen


def _collected(
    scores: ScoreFunction,
    model: PyTree,
    batches: Batches,
    options: PageOptions,
    reading: Reading,
    chosen: Int[np.ndarray, " unit"] | None,
) -> FeatureData:
    """The data that comes from the pass itself."""
    if (options.loss_examples or options.token_examples) and isinstance(batches, Iterator):
        raise UserError(READ_AGAIN)
    found = collect(scores, model, batches, page_statistics(options), reading)
    activity: UnitActivity = found["each"]["activity"]
    units = np.arange(len(activity.firings)) if chosen is None else chosen
    sample: Sample = found["each"]["sample"]
    co_firing = None
    if options.co_firing and len(units) > 1:
        if (both := found["co-firing"]) is not None:
            near, measure = most_alike(both, options.co_firing), "Jaccard index"
        else:
            near = most_alike_in_samples(sample.keys, options.co_firing)
            measure = f"Jaccard index, estimated from {options.sample} positions"
        co_firing = Neighbours(np.where(near[0] >= 0, units[near[0]], -1), near[1].astype(np.float32), measure)
    groups = [Examples("top", found["each"]["top"])]
    if (activity.lowest < 0).any():
        groups.append(Examples("lowest", found["each"]["lowest"]))
    groups += _quantiles(sample, activity.firings, options)
    if options.uniform:
        groups.append(
            Examples("uniform", _picked(sample.windows, np.arange(options.uniform)[None].repeat(len(units), 0)))
        )
    return FeatureData(
        units, "", "", "", "", "", found["kept"], activity.firings, activity.highest, activity.lowest, activity.mean,
        activity.histogram, tuple(groups), co_firing=co_firing,
    )  # fmt: skip


def page_statistics(options: PageOptions) -> dict[str, Any]:
    """The statistics of one pass from which a page is made."""
    size = {"before": options.before, "after": options.after, "threshold": options.threshold}
    each = {
        "top": TopWindows(options.top, **size),
        "lowest": TopWindows(options.top, **size, lowest=True),
        "sample": UniformWindows(options.sample, **size, seed=options.seed),
        "activity": Activity(options.threshold),
    }
    statistics: dict[str, Any] = {"kept": KeptPositions(), "each": InPieces(each, options.piece)}
    if options.co_firing:
        statistics["co-firing"] = CoFiring(options.threshold, at_most=options.exact_co_firing)
    return statistics


def _quantiles(sample: Sample, firings: Int[np.ndarray, " unit"], options: PageOptions) -> Iterator[Examples]:
    """Examples by the quantile of their scores in the sample, the highest quantile first.

    A sample of m positions is sorted by score. Quantile group q of Q has the positions from ⌊mq/Q⌋ to ⌊m(q+1)/Q⌋. The
    first ones in random order are examples, and are shown in descending order of their scores.
    """
    size, Q = np.minimum(firings, options.sample)[:, None], options.quantiles
    blank = ~np.isfinite(sample.keys)
    order = np.argsort(np.where(blank, -np.inf, sample.windows.peak), axis=1, kind="stable")[:, ::-1]
    rank = np.empty_like(order)
    np.put_along_axis(rank, order, np.broadcast_to(np.arange(options.sample)[None], order.shape), axis=1)
    rank = size - 1 - rank  # 0: the lowest of the positions that are there; negative: blank
    for q in range(Q - 1, -1, -1):
        inside = (rank >= size * q // Q) & (rank < size * (q + 1) // Q)
        first = np.argsort(~inside, axis=1, kind="stable")[:, : options.per_quantile]
        there = np.take_along_axis(inside, first, 1)
        by_score = np.argsort(np.where(there, -np.take_along_axis(rank, first, 1), 1), axis=1, kind="stable")
        first = np.where(np.take_along_axis(there, by_score, 1), np.take_along_axis(first, by_score, 1), -1)
        yield Examples(f"quantile {q / Q:.2g}–{(q + 1) / Q:.2g}", _picked(sample.windows, first))


def _picked(windows: Windows, columns: Int[np.ndarray, "unit n"]) -> Windows:
    """Some windows of each unit. -1: a blank one."""
    there = columns >= 0

    def of(values: np.ndarray, blank: int) -> np.ndarray:
        more = (slice(None), slice(None), *(None,) * (values.ndim - 2))
        return np.where(
            there[more], np.take_along_axis(values, np.maximum(columns, 0)[more], axis=1), values.dtype.type(blank)
        )

    activations = None if windows.activations is None else of(windows.activations, 0)
    place = None if windows.place is None else of(windows.place, -1)
    return Windows(
        of(windows.peak, 0), of(windows.tokens, -1), of(windows.scores, 0), activations, windows.before, place
    )
