"""`dataset_means`: the mean of named values over a dataset, streamed batch by batch. Mean ablation replaces by them.

dataset_means(model, ["blocks.*.attn_out", "blocks.*.mlp_out"], batches)      at each position
dataset_means(model, "blocks.*.attn.z", batches, by="dataset")                over all positions
dataset_means(model, "blocks.*.attn.z", batches, groups=templates)            at each position, for each template
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Mapping, Sequence
from functools import partial
from typing import Any, Literal

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int

from jax_interp.core.errors import UserError
from jax_interp.core.layer import upcast
from jax_interp.core.processes import on_host
from jax_interp.surgery import Address, Model, values_at
from jax_interp.surgery.address import canonical, flatten

By = Literal["position", "dataset"]


@dataclasses.dataclass(frozen=True)
class DatasetMeans:
    """Means of named values. `dataset_means` makes them.

    Args:
      means: for each address, `[layer, group, pos, ...]` with `by="position"`, or `[layer, group, 1, ...]` with
        `by="dataset"`. A value of one layer has a layer axis of length 1. NaN where no token was counted.
      counts: how many tokens were counted, `[group, pos]` or `[group, 1]`.
      groups: the names of the groups, in order. One group of the name None if there are none.
    """

    means: Mapping[str, Float[np.ndarray, "layer group pos ..."]]
    counts: Int[np.ndarray, "group pos"]
    groups: tuple[Any, ...]

    def values(
        self,
        address: str,
        shape: tuple[int, int],
        *,
        mask: Bool[Array, "prompt pos"] | None = None,
        groups: Sequence[Any] | None = None,
    ) -> Float[Array, "layer prompt pos ..."]:
        """The mean for each token of some prompts: what mean ablation puts in its place.

        Args:
          address: one of the addresses.
          shape: (number of prompts, number of tokens).
          mask: True for the real tokens of these prompts. The position of a token is the number of real tokens before.
          groups: the group of each prompt; None if the means have no groups.

        Raises:
          UserError: there is no such mean, a group is not known, or a token has a position that the dataset does not
            have.
        """
        key = canonical(address)
        if key not in self.means:
            raise UserError(f"there is no mean of {address!r}; there are {', '.join(self.means)}")
        row = self._rows(shape[0], groups)
        real = np.ones(shape, bool) if mask is None else np.asarray(mask, bool)
        pos = np.maximum(np.cumsum(real, axis=1) - 1, 0)
        pos = np.zeros_like(pos) if self.counts.shape[1] == 1 else pos
        if pos.max(initial=0) >= self.counts.shape[1] or (self.counts[row[:, None], pos][real] == 0).any():
            raise UserError("a prompt has a position, or a group, of which the dataset has no token: there is no mean")
        found = self.means[key][:, row[:, None], pos]
        return jnp.asarray(np.where(np.isnan(found), 0, found))  # NaN is left only at padding

    def _rows(self, prompts: int, groups: Sequence[Any] | None) -> np.ndarray:
        if groups is None and len(self.groups) == 1:
            return np.zeros(prompts, int)
        given = [None] * prompts if groups is None else list(groups)
        unknown = sorted({repr(group) for group in given if group not in self.groups})
        if unknown or len(given) != prompts:
            known = ", ".join(map(repr, self.groups))
            raise UserError(
                f"groups= has {len(given)} entries for {prompts} prompts; the means have the groups {known}"
            )
        return np.asarray([self.groups.index(group) for group in given])


def dataset_means(
    model: Model,
    names: str | Iterable[str],
    batches: Iterable[Any],
    *,
    by: By = "position",
    groups: Iterable[Sequence[Any]] | None = None,
) -> DatasetMeans:
    """The mean of named values over a dataset. Padding is not counted.

    Args:
      model: the model, under surgery or not.
      names: an address, or several. Each value has the axes (batch, pos, ...).
      batches: token arrays [batch, pos], or pairs (tokens, mask). They can differ in length, and are read once.
      by: position: a mean for each position, which is the number of real tokens before a token. dataset: one mean over
        all tokens.
      groups: for each batch, the group of each row, such as its template. The means are then separate. None: one group.

    Returns:
      The means. They are summed in float32 within a batch, and in float64 over batches.

    Raises:
      UserError: there is no batch or no real token, a batch is no array of tokens, or the groups do not fit.
      AddressError: the model has no such value.
    """
    addresses = tuple(canonical(name) for name in flatten(names))
    if by not in ("position", "dataset"):
        raise UserError(f"by={by!r}: choose position or dataset")
    names_of_groups: dict[Any, int] = {}
    sums, counts = {address: {} for address in addresses}, {}
    given = iter(groups) if groups is not None else None
    for batch in batches:
        tokens, mask = batch if isinstance(batch, (tuple, list)) else (batch, None)
        tokens = jnp.asarray(tokens)
        if tokens.ndim != 2 or not jnp.issubdtype(tokens.dtype, jnp.integer):
            raise UserError(f"a batch is token ids [batch, pos], or (tokens, mask); got {tokens.dtype}{tokens.shape}")
        row = _group_rows(given, len(tokens), names_of_groups)
        size = 1 << max(0, len(names_of_groups) - 1).bit_length()  # a new group seldom compiles again
        real = jnp.ones(tokens.shape, bool) if mask is None else jnp.asarray(mask, bool)
        if real.shape != tokens.shape:
            raise UserError(f"the mask has shape {real.shape}, the tokens have {tokens.shape}")
        part, count = _sums(model, tokens, real, jnp.asarray(row, jnp.int32), mask is not None,
                            addresses=addresses, by=by, size=size)  # fmt: skip
        _add(counts, "", np.asarray(on_host(count), np.float64)[None])
        for address in addresses:
            _add(sums[address], "", np.asarray(on_host(part[address]), np.float64))
    return _finished(sums, counts, names_of_groups)


def _group_rows(given: Any, rows: int, names: dict[Any, int]) -> np.ndarray:
    if given is None:
        names.setdefault(None, 0)
        return np.zeros(rows, int)
    of_batch = list(next(given, ()))
    if len(of_batch) != rows:
        raise UserError(f"groups= has {len(of_batch)} entries for a batch of {rows} rows")
    return np.asarray([names.setdefault(group, len(names)) for group in of_batch])


@partial(jax.jit, static_argnames=("padded", "addresses", "by", "size"))
def _sums(
    model: Model, tokens: Array, real: Array, row: Array, padded: bool, *, addresses: tuple, by: By, size: int
) -> tuple[dict[str, Array], Array]:
    """Sums over the real tokens of a batch, [layer, group, pos, ...], and their number, [group, pos]."""
    inputs = {"mask": real} if padded else {}
    values = values_at(model, *addresses)(tokens, **inputs)
    n = tokens.shape[1] if by == "position" else 1
    pos = jnp.maximum(jnp.cumsum(real, axis=1) - 1, 0) if by == "position" else jnp.zeros(real.shape, jnp.int32)
    place = (row[:, None] * n + pos).reshape(-1)
    add = lambda terms: jax.ops.segment_sum(terms, place, size * n)

    def total(value: Array) -> Array:  # [batch, pos, ...]
        kept = jnp.where(jnp.expand_dims(real, range(2, value.ndim)), upcast(value), 0)
        return add(kept.reshape(-1, *value.shape[2:])).reshape(size, n, *value.shape[2:])

    found = {}
    for address in addresses:
        value = values[address]
        value = value[None] if Address.parse(address).is_single else value
        if value.shape[1:3] != tokens.shape:
            raise UserError(f"{address!r} has shape {value.shape[1:]}, and not one value for each token {tokens.shape}")
        found[address] = jax.vmap(total)(value)
    return found, add(real.reshape(-1).astype(jnp.int32)).reshape(size, n)


def _add(totals: dict[str, np.ndarray], key: str, part: np.ndarray) -> None:
    """Add [layer, group, pos, ...]. More groups or positions make the total larger."""
    old = totals.get(key, np.zeros((part.shape[0], 0, 0, *part.shape[3:])))
    shape = (part.shape[0], *(max(a, b) for a, b in zip(old.shape[1:3], part.shape[1:3])), *part.shape[3:])
    total = np.zeros(shape)
    for array in (old, part):
        total[:, : array.shape[1], : array.shape[2]] += array
    totals[key] = total


def _finished(sums: dict[str, dict], counts: dict, groups: dict[Any, int]) -> DatasetMeans:
    if not counts or not counts[""].sum():
        raise UserError("there is no token to average over: give at least one batch with real tokens")
    n = counts[""][0, : len(groups)]
    means = {}
    for address, total in sums.items():
        value = total[""][:, : len(groups)]
        count = np.expand_dims(n, (0, *range(3, value.ndim)))
        means[address] = np.where(count > 0, value / np.maximum(count, 1), np.nan).astype(np.float32)
    return DatasetMeans(means, n.astype(np.int64), tuple(groups))
