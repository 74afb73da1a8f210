"""`scrub`: erase a concept at many sites. Each eraser is fitted in the model that has the earlier ones.

erasers = scrub(model, data, "blocks.*.resid_post")
edited = edit(model, erasers.edits())

An erasure at one layer does not keep a later layer from computing the concept anew, from what is not linear in it
(Belrose et al. 2023, arXiv:2306.03819: concept scrubbing).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Int

from jax_interp.core.errors import UserError
from jax_interp.core.layer import upcast
from jax_interp.probes.erasure.eraser import AffineEraser, MomentErasure, concept_of
from jax_interp.probes.erasure.fit import Erasers, row_labels
from jax_interp.probes.erasure.leace import Leace
from jax_interp.probes.erasure.moments import Moments
from jax_interp.probes.labelled_tokens import LabelledTokens
from jax_interp.probes.text_reader import single_sites
from jax_interp.probes.token_rules import ALL, TokenRule, tokens_of
from jax_interp.surgery import Model, at, edit, sites, values_at
from jax_interp.surgery.region import Index

Quiet: Callable[[int, int], None] = lambda done, total: None


def scrub(
    model: Model,
    data: LabelledTokens,
    at_sites: str | Sequence[str],
    erasure: MomentErasure | None = None,
    *,
    rule: TokenRule = ALL,
    pos: Index | None = None,
    batch: int = 32,
    on_site: Callable[[int, int], None] = Quiet,
) -> Erasers:
    """Fit erasers in the order of the forward pass, each in the model that the earlier erasers edit.

    The examples pass the model once for each site. Activations are not stored: means and covariances are added up on
    the device. One program is compiled, whatever the number of sites.

    Args:
      model: any model that names its values.
      data: the examples.
      at_sites: addresses of values `[batch, pos, d]` of one width, such as `blocks.*.resid_post`.
      erasure: how. It needs means and covariances only. None: `Leace()`.
      rule: the tokens that the erasers are fitted on. A token has its own label if there are token labels, else the
        label of its example.
      pos: the positions where the erasers act, as in `at`; they must be the same later in `Erasers.edits`. None: all.
      batch: the number of examples in one forward pass.
      on_site: called with (sites done, sites) after each site.

    Raises:
      UserError: there is one class only, the sites have different widths, or a value is not finite.
    """
    names, erasure = in_forward_order(model, data, at_sites), Leace() if erasure is None else erasure
    read, of_row = tokens_of(rule, data), row_labels(data, None, tokens=True)
    if np.issubdtype(of_row.dtype, np.integer):
        read = read & (of_row >= 0)
    found = concept_of(of_row[read], len(data.classes) if data.classes else None)
    z = np.zeros((*of_row.shape, found.shape[1]), np.float32)
    z[read] = found
    d = _width(model, data, names)
    erasers = {name: AffineEraser.identity(d, z.shape[-1]) for name in names}
    for number, name in enumerate(names):
        edits = tuple(at(site, eraser, pos=pos) for site, eraser in erasers.items())
        moments = Moments.empty(d, z.shape[-1])
        for rows in _batches(len(data), batch):
            kept = read[rows] & (np.arange(len(rows)) < len(data) - rows[0])[:, None]
            mask = None if data.mask.all() else data.mask[rows]
            moments = _add(
                names, jnp.asarray(number), edit(model, *edits), moments, data.tokens[rows], mask, (kept, z[rows])
            )
        erasers[name] = erasure.from_moments(moments)
        on_site(number + 1, len(names))
    return Erasers(erasure, erasers)


def in_forward_order(model: Model, data: LabelledTokens, at_sites: str | Sequence[str]) -> tuple[str, ...]:
    """Addresses of single layers, in the order in which the model computes them."""
    names = single_sites(model, data, at_sites)
    order = list(sites(model)(jnp.asarray(data.tokens[:1])))
    return tuple(sorted(names, key=order.index))


def _width(model: Model, data: LabelledTokens, names: tuple[str, ...]) -> int:
    values = jax.eval_shape(lambda m, t: values_at(m, *names)(t), model, jnp.asarray(data.tokens[:1]))
    widths = {name: values[name].shape[2:] for name in names}
    if len(set(widths.values())) > 1 or len(next(iter(widths.values()))) != 1:
        raise UserError(f"erasers act on values [batch, pos, d] of one width, and these are {widths}")
    return next(iter(widths.values()))[0]


def _batches(examples: int, batch: int) -> list[Int[np.ndarray, " row"]]:
    """The rows of each batch. The last one is filled up with copies of the last example."""
    if batch < 1:
        raise UserError(f"batch={batch} must be at least 1")
    batch = min(batch, examples)
    return [np.minimum(np.arange(start, start + batch), examples - 1) for start in range(0, examples, batch)]


@partial(jax.jit, static_argnums=0)
def _add(
    names: tuple[str, ...],
    number: Array,
    model: Model,
    moments: Moments,
    tokens: Array,
    mask: Array | None,
    concept: tuple[Array, Array],
) -> Moments:
    """Add the value of site `number`, whose own eraser does nothing yet. `concept`: the tokens that count, and z."""
    values = values_at(model, *names)(tokens, **({} if mask is None else {"mask": mask}))
    x = upcast(jax.lax.dynamic_index_in_dim(jnp.stack([values[name] for name in names]), number, keepdims=False))
    kept, z = (a.reshape(-1, *a.shape[2:]) for a in concept)
    return moments.update(x.reshape(-1, x.shape[-1]), z, kept.astype(jnp.float32))
