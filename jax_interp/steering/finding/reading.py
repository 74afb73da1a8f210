"""One pass over labelled texts: the means of both classes at all sites, and the vectors of the examples if needed."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh
from jaxtyping import Array, Float

from jax_interp.core.errors import UserError
from jax_interp.core.layer import upcast
from jax_interp.core.processes import to_host
from jax_interp.models import Decoder
from jax_interp.probes.gather import Vectors
from jax_interp.probes.labelled_tokens import LabelledTokens
from jax_interp.probes.text_reader import QUIET, OnBatch, TextReader, wide_values
from jax_interp.probes.token_rules import TokenRule, tokens_of
from jax_interp.steering.finding.method import ReadTexts
from jax_interp.steering.finding.shared_prompts import SharedPrompts, shared_prompts
from jax_interp.surgery import Model, values_at
from jax_interp.training.placement import automatic

HIGH = jax.lax.Precision.HIGHEST


def read_texts(
    model: Model,
    data: LabelledTokens,
    sites: str | Sequence[str],
    rules: Sequence[TokenRule],
    *,
    keep_rows: bool,
    batch: int = 32,
    on_batch: OnBatch = QUIET,
    place: Mesh | None = None,
) -> ReadTexts:
    """Read texts of two classes.

    Sums of a batch are centred by its mean, and batches are added up in float64: the difference of two long means that
    are near to each other keeps its digits, however many texts there are.

    Args:
      model: any model that names its values, as in `gather`.
      data: the texts, of two classes.
      sites: addresses of values `[batch, pos, ...]` of one width.
      rules: the token rules.
      keep_rows: keep the vector of each example, in float32 on the host.
      batch: the number of texts in one forward pass.
      on_batch: called with (examples done, examples) after each batch.
      place: a mesh, as in `gather`.

    Raises:
      UserError: as in `gather`, or the sites have different widths.
    """
    rules = tuple(rules)
    if len(set(map(str, rules))) < len(rules) or not rules:
        raise UserError(f"give rules with different names, not {', '.join(map(str, rules)) or 'none'}")
    weight = np.stack([tokens_of(rule, data) for rule in rules], axis=1).astype(np.float32)
    weight /= weight.sum(axis=-1, keepdims=True)
    of_class = np.stack([data.labels == 0, data.labels == 1], axis=1).astype(np.float32)
    reader = TextReader.of(model, data, sites, batch, place)
    if len(set(reader.widths.values())) > 1:
        raise UserError(f"the sites have different widths, {reader.widths}: give one call for each width")
    if keep_rows:
        what = f"{len(rules)} rules × {len(data)} examples"
        reader.check_memory(len(rules) * len(data), what, "examples or rules")
    if (shared := shared_prompts(model, data, weight)) is None:
        batches = _batches(reader, keep_rows, weight, of_class, on_batch)
    else:
        pairs = TextReader.of(model, shared.prompts, sites, batch, place)
        batches = _pair_batches(pairs, keep_rows, shared, of_class, on_batch)
    names, width = tuple(reader.widths), next(iter(reader.widths.values()))
    kept = {name: np.empty((len(rules), len(data), width), np.float32) for name in names if keep_rows}
    sums, norms = np.zeros((len(names), len(rules), 2, width)), np.zeros((len(names), len(rules)))
    for row, found in batches:
        near, centred, lengths, values = to_host(found)
        count = of_class[row].sum(axis=0).astype(np.float64)
        sums += centred.astype(np.float64) + count[None, None, :, None] * near[:, :, None].astype(np.float64)
        norms += lengths
        for name, x in zip(kept, values, strict=True):
            kept[name][:, row] = x[: len(row)].swapaxes(0, 1)
    means = sums / of_class.sum(axis=0, dtype=np.float64)[None, None, :, None]
    if not (finite := np.isfinite(means).all(axis=(1, 2, 3))).all():
        raise UserError(
            f"{names[int(np.argmin(finite))]} is not finite at a token that is read: look for NaN in the model and its "
            "edits, or for an overflow if it computes in float16"
        )
    return ReadTexts(data, names, rules, means, norms / len(data), Vectors(data, rules, kept) if keep_rows else None)


Sums = tuple[Array, Array, Array, list[Array]]
"""(The mean of the rows `[site, rule, d]`; the sum of the centred rows of each class `[site, rule, 2, d]`; the sum of
the norms `[site, rule]`; the rows of each site `[row, rule, d]`, or none)."""


def _batches(
    reader: TextReader, keep_rows: bool, weight: np.ndarray, of_class: np.ndarray, on_batch: OnBatch
) -> Iterator[tuple[np.ndarray, Sums]]:
    """The numbers of the examples of each batch, and their sums."""
    for some, found in reader.batches(partial(_read, keep_rows), weight, of_class, on_batch=on_batch):
        yield some.rows, found


def _pair_batches(
    reader: TextReader, keep_rows: bool, shared: SharedPrompts, of_class: np.ndarray, on_batch: OnBatch
) -> Iterator[tuple[np.ndarray, Sums]]:
    """The same for pairs with one prompt: the first sides of the pairs, and then the second sides."""
    of_pairs = (shared.tokens, shared.mask, shared.weight, of_class[shared.rows])
    both = lambda done, total: on_batch(2 * done, 2 * total)
    for some, found in reader.batches(partial(_read_pairs, keep_rows), shared.prompts.mask, *of_pairs, on_batch=both):
        near, centred, lengths, values = found
        n = len(some.filled)
        real = [jnp.concatenate([x[: len(some.rows)], x[n : n + len(some.rows)]]) for x in values]
        yield shared.rows[some.rows].T.reshape(-1), (near, centred, lengths, real)


@partial(jax.jit, static_argnums=(0, 1))
@automatic
def _read(
    keep_rows: bool,
    names: tuple[str, ...],
    model: Model,
    tokens: Array,
    mask: Array | None,
    weight: Float[Array, "row rule pos"],
    of_class: Float[Array, "row 2"],
) -> Sums:
    return _sums(keep_rows, wide_values(names, model, tokens, mask), weight, of_class)


@partial(jax.jit, static_argnums=(0, 1))
@automatic
def _read_pairs(
    keep_rows: bool,
    names: tuple[str, ...],
    model: Decoder,
    prompt: Array,
    mask: Array | None,
    *of_pairs: Array,
) -> Sums:
    """Prompts once, and then both ends of each. The logits of the prompts are not used, so they are not computed.

    `of_pairs` is the mask of the prompts, and of the ends their tokens `[pair, 2, pos]`, their mask, their weight
    `[pair, 2, rule, pos]` and their class `[pair, 2, 2]`.
    """
    _, tokens, real, weight, of_class = of_pairs
    cache = model(prompt, mask=mask, cache=prompt.shape[1] + tokens.shape[2], last_only=True)[1]

    def side(tokens: Array, real: Array) -> list[Array]:
        found = values_at(model, *names)(tokens, mask=real, cache=cache)
        return [upcast(found[name]).astype(jnp.float32).reshape(*tokens.shape, -1) for name in names]

    by_side = lambda x: jnp.moveaxis(x, 1, 0).reshape(-1, *x.shape[2:])
    values = [x.reshape(-1, *x.shape[2:]) for x in jax.vmap(side, in_axes=1)(tokens, real)]
    return _sums(keep_rows, values, by_side(weight), by_side(of_class))


def _sums(
    keep_rows: bool,
    values: list[Float[Array, "row pos d"]],
    weight: Float[Array, "row rule pos"],
    of_class: Float[Array, "row 2"],
) -> Sums:
    """The sums of a batch. Rows that are copies have weight 0 and no class."""
    some = jnp.any(weight > 0, axis=1)
    count = jnp.sum(of_class)
    near, centred, lengths, kept = [], [], [], []
    for x in values:
        read = jnp.where(some[..., None], x, jnp.zeros_like(x))  # a value that is not read may be anything, NaN too
        rows = jnp.einsum("nrp,npd->nrd", weight, read, precision=HIGH)
        mean = jnp.einsum("nk,nrd->rd", of_class, rows, precision=HIGH) / count
        near.append(mean)
        centred.append(jnp.einsum("nk,nrd->rkd", of_class, rows - mean[None], precision=HIGH))
        lengths.append(jnp.einsum("nrp,np->r", weight, jnp.linalg.norm(read, axis=-1), precision=HIGH))
        kept += [rows] if keep_rows else []
    return jnp.stack(near), jnp.stack(centred), jnp.stack(lengths), kept


@partial(jax.jit, static_argnums=0)
@automatic
def read_values(names: tuple[str, ...], model: Model, tokens: Array) -> list[Float[Array, "row pos d"]]:
    """The values of single layers at all tokens, in float32."""
    return wide_values(names, model, tokens, None)
