"""One pass over labelled texts: the means of both classes at all sites, and the vectors of the examples if needed."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh
from jaxtyping import Array, Float

from jax_interp.core.errors import UserError
from jax_interp.core.processes import to_host
from jax_interp.probes.gather import Vectors
from jax_interp.probes.labelled_tokens import LabelledTokens
from jax_interp.probes.text_reader import QUIET, OnBatch, TextReader, wide_values
from jax_interp.probes.token_rules import TokenRule, tokens_of
from jax_interp.steering.finding.method import ReadTexts
from jax_interp.surgery import Model
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
    reader = TextReader.of(model, data, sites, batch, place)
    if len(set(reader.widths.values())) > 1:
        raise UserError(f"the sites have different widths, {reader.widths}: give one call for each width")
    if keep_rows:
        what = f"{len(rules)} rules × {len(data)} examples"
        reader.check_memory(len(rules) * len(data), what, "examples or rules")
    names, width = tuple(reader.widths), next(iter(reader.widths.values()))
    kept = {name: np.empty((len(rules), len(data), width), np.float32) for name in names if keep_rows}
    of_class = np.stack([data.labels == 0, data.labels == 1], axis=1).astype(np.float32)
    sums, norms = np.zeros((len(names), len(rules), 2, width)), np.zeros((len(names), len(rules)))
    for some, found in reader.batches(partial(_read, keep_rows), weight, of_class, on_batch=on_batch):
        near, centred, lengths, rows = to_host(found)
        count = of_class[some.rows].sum(axis=0).astype(np.float64)
        sums += centred.astype(np.float64) + count[None, None, :, None] * near[:, :, None].astype(np.float64)
        norms += lengths
        for name, x in zip(kept, rows, strict=True):
            kept[name][:, some.rows] = x[: len(some.rows)].swapaxes(0, 1)
    means = sums / of_class.sum(axis=0, dtype=np.float64)[None, None, :, None]
    if not (finite := np.isfinite(means).all(axis=(1, 2, 3))).all():
        raise UserError(
            f"{names[int(np.argmin(finite))]} is not finite at a token that is read: look for NaN in the model and its "
            "edits, or for an overflow if it computes in float16"
        )
    return ReadTexts(data, names, rules, means, norms / len(data), Vectors(data, rules, kept) if keep_rows else None)


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
) -> tuple[Array, Array, Array, list[Array]]:
    """(The mean of the rows `[site, rule, d]`; the sum of the centred rows of each class `[site, rule, 2, d]`; the sum
    of the norms `[site, rule]`; the rows of each site `[row, rule, d]`). Rows of copies have no weight."""
    some = jnp.any(weight > 0, axis=1)
    count = jnp.sum(of_class)
    near, centred, lengths, kept = [], [], [], []
    for x in wide_values(names, model, tokens, mask):
        read = jnp.where(some[..., None], x, jnp.zeros_like(x))  # a value that is not read may be anything, NaN too
        rows = jnp.einsum("nrp,npd->nrd", weight, read, precision=HIGH)
        mean = jnp.einsum("nk,nrd->rd", of_class, rows, precision=HIGH) / count
        near.append(mean)
        centred.append(jnp.einsum("nk,nrd->rkd", of_class, rows - mean[None], precision=HIGH))
        lengths.append(jnp.einsum("nrp,np->r", weight, jnp.linalg.norm(read, axis=-1), precision=HIGH))
        kept += [rows] if keep_rows else []
    return jnp.stack(near), jnp.stack(centred), jnp.stack(lengths), kept
