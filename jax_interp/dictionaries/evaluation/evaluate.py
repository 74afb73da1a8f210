"""Measure a dictionary in a model. Any model that keeps the contract of `jax_interp.surgery` works.

result = evaluate(model, "blocks.2.resid_post", sae, [(tokens, keep), ...])
result.reconstruction.fvu, result.cross_entropy.recovered_zero, result.to_json()
"""

from __future__ import annotations

import dataclasses
import itertools
import math
from collections.abc import Iterable, Sequence
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from jax_interp.core.errors import UserError
from jax_interp.core.leaves import check_finite
from jax_interp.data.harvest import TokenBatch, later_positions, values
from jax_interp.dictionaries.evaluation import downstream
from jax_interp.dictionaries.evaluation.batch_sums import add_batch
from jax_interp.dictionaries.evaluation.downstream import Addresses, CrossEntropy
from jax_interp.dictionaries.evaluation.published import Published
from jax_interp.dictionaries.evaluation.reconstruction import (
    Reconstruction,
    Sums,
    add_batch_sums,
    batch_sums,
    fvu_by_value,
    masked_mean,
    mean_from_sums,
    subtract_sums,
)
from jax_interp.dictionaries.evaluation.sparsity import Density, SourceSparsity, sparsity_by_source
from jax_interp.dictionaries.sparse_coder import EncoderDecoder, as_sparse_coder
from jax_interp.surgery import Model, canonical

Batches = Sequence[TokenBatch]


@dataclasses.dataclass(frozen=True)
class Figures:
    """The figures of `evaluate_rows`. They need activations, but no model."""

    reconstruction: Reconstruction
    """How well and how sparsely activations are reconstructed."""
    density: Density
    """How often features fire."""
    published: Published
    """Figures as other libraries define them."""


def evaluate_rows(
    dictionary: EncoderDecoder,
    rows: Iterable[Float[Array, "row d"]],
    written: Iterable[Float[Array, "row d_out"]] | None = None,
) -> Figures:
    """Measure a dictionary on given activations, without their model.

    Batches of one shape compile once, for all dictionaries of one form.

    Args:
      dictionary: an object with `encode` and `decode`.
      rows: batches of the activations that it reads. They are read once.
      written: batches of the activations that it should write, of the same lengths. None: the same as `rows`.

    Returns:
      The figures of reconstruction and sparsity.

    Raises:
      UserError: there are no rows, or a weight of the dictionary is not finite.

    Example:
        figures = evaluate_rows(sae, [harvest(model, "blocks.2.resid_post", tokens)])
        figures.reconstruction.fvu
    """
    check_finite(dictionary, "the dictionary")
    shift, total = None, None
    for x, y in zip(rows, itertools.repeat(None) if written is None else written, strict=written is not None):
        keep = jnp.ones((x.shape[0],), bool)
        if shift is None:
            shift = masked_mean(x if y is None else y, keep)
        total = add_batch_sums(total, _batch_sums(dictionary, x, keep, shift, y))
    if total is None:
        raise UserError("no rows: give an iterable of [row, d] arrays that has not been used up")
    return Figures(Reconstruction.from_sums(total), Density.from_sums(total), Published.from_sums(total))


@dataclasses.dataclass(frozen=True)
class Evaluation:
    """The figures of `evaluate`. Only kept tokens count. A prediction counts if its token and the next one are kept."""

    address: Addresses
    """The address that the dictionary reads, or several."""
    reconstruction: Reconstruction
    """How well and how sparsely activations are reconstructed."""
    density: Density
    """How often features fire."""
    cross_entropy: CrossEntropy
    """The model's loss with the dictionary spliced in, and with the value ablated."""
    reconstruction_after_first: Reconstruction | None
    """`reconstruction` without position 0. Activations there can be thirty times as long as all others, and then they
    determine SSE and FVU. None if position 0 is never kept, or if no other position is kept."""
    cross_entropy_after_first: CrossEntropy | None
    """`cross_entropy` without predictions from position 0. None in the same cases."""
    published: Published
    """Figures as other libraries define them."""
    fvu_by_value: dict[str, float]
    """The FVU of each written value, by address. In the FVU of all values together, the longest values count most."""
    by_source: tuple[SourceSparsity, ...] = ()
    """L0 and dead latents of each source of a cross-layer dictionary. Empty for other dictionaries."""
    skip_first: int = 0
    """The number of first positions that are left out of all figures but `reconstruction_all`."""
    reconstruction_all: Reconstruction | None = None
    """`reconstruction` with the positions that `skip_first` leaves out. None if it leaves out none."""

    def to_json(self) -> dict[str, Any]:
        """The figures as nested dicts and lists of JSON values. NaN and infinities become None."""
        return without_nan(dataclasses.asdict(self))


def evaluate(
    model: Model,
    address: Addresses,
    dictionary: EncoderDecoder,
    batches: Batches,
    writes: Addresses | None = None,
    skip_first: int = 0,
) -> Evaluation:
    """Measure a dictionary in its model. Batches of one shape compile once.

    Args:
      model: any model that keeps the contract of `jax_interp.surgery`.
      address: the address that the dictionary reads. For a crosscoder, give several addresses; their values are side by
        side in the last axis.
      dictionary: an object with `encode` and `decode`.
      batches: pairs of tokens [seq, pos] and a mask `keep` [seq, pos]. They are read twice: once for the activations,
        where the model runs only up to `address`, and once for the losses. Positions where `keep` is False (padding,
        special tokens) count in no figure, and their activations are never replaced.
      writes: the address that the dictionary should write, or several. None: the same as `address`. This value is
        replaced by the dictionary's output, and it is the value that is ablated.
      skip_first: the number of positions at the start of each sequence that the dictionary was not trained on. They are
        treated as if `keep` were False. Only `reconstruction_all` includes them.

    Returns:
      The figures of reconstruction, sparsity and loss.

    Raises:
      SelfCheckError: splicing the identity into the first batch changes a bit of its cross-entropy.
      UserError: there are no batches, their shapes differ, `keep` leaves no token or no prediction, a weight of the
        dictionary is not finite, or the model's own loss is NaN.

    Example:
        result = evaluate(model, "blocks.2.resid_post", sae, [(tokens, keep)])
        result.reconstruction.l0, result.cross_entropy.recovered_zero
    """
    if not len(batches):
        raise UserError("evaluate got no batches: give at least one (tokens, keep)")
    shape = np.shape(batches[0][0])
    if any(np.shape(tokens) != np.shape(keep) for tokens, keep in batches):
        raise UserError(f"keep must have the shape of its tokens, such as {shape}")
    check_finite(dictionary, "the dictionary")
    address, writes = canonical(address), canonical(writes)
    whole = batches if skip_first else None
    batches = [(tokens, later_positions(keep, skip_first)) for tokens, keep in batches]
    downstream.check_identity(model, writes or address, *map(jnp.asarray, batches[0]))
    shift, total, first, widths = _sums(model, address, dictionary, batches, writes)
    if not total["tokens"]:
        raise UserError(f"keep is False at every position of all {len(batches)} batches: nothing to measure")
    mean = jnp.asarray(mean_from_sums(total, shift), jnp.float32)
    by_position, by_context = None, None
    for tokens, keep in batches:
        on_device = jnp.asarray(tokens), jnp.asarray(keep)
        losses = downstream.batch_losses(model, address, dictionary, *on_device, mean, writes)
        counted = downstream.prediction_mask(keep)
        by_position = downstream.add_by_position(by_position, losses, counted)
        by_context = downstream.add_by_index(by_context, losses, counted, downstream.context_length(keep))
    assert by_position is not None
    if not by_position["count"].sum():
        raise UserError("no two neighbouring positions are kept in any batch: there is no prediction to measure")
    n_sources = as_sparse_coder(dictionary).n_sources
    later = downstream.without_position_0(by_position)
    return Evaluation(
        address=address,
        reconstruction=Reconstruction.from_sums(total),
        density=Density.from_sums(total),
        cross_entropy=CrossEntropy.from_sums(by_position, by_context),
        reconstruction_after_first=None if first is None else Reconstruction.from_sums(subtract_sums(total, first)),
        cross_entropy_after_first=None if first is None else CrossEntropy.from_sums(later),
        published=Published.from_sums(total),
        fvu_by_value=fvu_by_value(total, widths),
        by_source=sparsity_by_source(total, n_sources) if n_sources else (),
        skip_first=skip_first,
        reconstruction_all=None
        if whole is None
        else Reconstruction.from_sums(_sums(model, address, dictionary, whole, writes)[1]),
    )


def _sums(
    model: Model, address: Addresses, dictionary: EncoderDecoder, batches: Batches, writes: Addresses | None
) -> tuple[np.ndarray, Sums, Sums | None, dict[str, int]]:
    """The pass over activations: (shift, sums, sums at position 0 only, width of each written value). The shift is the
    mean of the first batch with a kept row. The sums at position 0 are None if it is never kept, or if no other
    position is kept."""
    reads, targets = downstream.address_tuple(address), downstream.address_tuple(writes or address)
    of_targets = jax.eval_shape(lambda model, tokens: values(model, targets, tokens), model, jnp.asarray(batches[0][0]))
    widths = {name: part.shape[1] for name, part in zip(targets, of_targets, strict=True)}
    shift, total, first, some = None, None, None, False
    for tokens, keep in batches:
        x, y = _rows(model, jnp.asarray(tokens), reads, targets if writes else ())
        of_row = jnp.asarray(keep).reshape(-1)
        if not some:  # until a batch has a kept row, no sum depends on the shift
            shift, some = masked_mean(x if y is None else y, of_row), bool(np.asarray(keep).any())
        total = add_batch_sums(total, _batch_sums(dictionary, x, of_row, shift, y))
        if np.asarray(keep)[:, 0].any():
            x, y, of_row = (None if a is None else a[:: tokens.shape[1]] for a in (x, y, of_row))
            first = add_batch(first, _batch_sums(dictionary, x, of_row, shift, y))
    assert total is not None
    if first is not None and first["tokens"] == total["tokens"]:
        first = None
    return np.asarray(shift), total, first, widths


_batch_sums = jax.jit(batch_sums)


@partial(jax.jit, static_argnames=("reads", "writes"))
def _rows(
    model: Model, tokens: Array, reads: tuple[str, ...], writes: tuple[str, ...]
) -> tuple[Float[Array, "row d"], Float[Array, "row d_out"] | None]:
    """(values at `reads`, values at `writes` or None if `writes` is empty). Several values are side by side."""
    parts = values(model, reads + writes, tokens)
    x, y = parts[: len(reads)], parts[len(reads) :]
    return jnp.concatenate(x, axis=1), jnp.concatenate(y, axis=1) if y else None


def without_nan(value: Any) -> Any:
    """Nested dicts and lists with None in place of NaN and infinities, which JSON does not have."""
    if isinstance(value, dict):
        return {name: without_nan(v) for name, v in value.items()}
    if isinstance(value, (list, tuple)):
        return type(value)(without_nan(v) for v in value)
    return None if isinstance(value, float) and not math.isfinite(value) else value
