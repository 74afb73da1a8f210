"""`fit_erasers`: an eraser for each site, from gathered activations. `Erasers` are edits of a model.

vectors = gather(model, data, "blocks.*.resid_post")
erasers = fit_erasers(Leace(), vectors, train=split.train)
edited = edit(model, erasers.edits())
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping

import jax.numpy as jnp
import numpy as np
from jaxtyping import Bool, Float, Int

from jax_interp.core.errors import UserError
from jax_interp.probes.erasure.eraser import AffineEraser, Erasure, concept_of
from jax_interp.probes.gather import Sequences, Vectors
from jax_interp.probes.labelled_tokens import LabelledTokens
from jax_interp.surgery import Edit, at
from jax_interp.surgery.region import Index
from jax_interp.surgery.verbs import flat_edits


@dataclasses.dataclass(frozen=True, eq=False)
class Erasers:
    """One eraser for each site.

    Args:
      erasure: how they were found.
      of_site: the erasers.
    """

    erasure: Erasure
    of_site: Mapping[str, AffineEraser]

    def edits(self, *, pos: Index | None = None) -> tuple[Edit, ...]:
        """The edits that erase at every site.

        An eraser that was fitted on the values of a model without edits fits one site. With edits at several sites, the
        later values are no longer those that their erasers were fitted on: `scrub` fits them one after another.

        Args:
          pos: the positions, as in `at`. None: all, BOS included. `slice(1, None)` leaves BOS as it is.
        """
        return tuple(flat_edits(at(site, eraser, pos=pos) for site, eraser in self.of_site.items()))


def fit_erasers(
    erasure: Erasure,
    on: Vectors | Sequences,
    *,
    train: Bool[np.ndarray, " example"] | None = None,
    labels: Int[np.ndarray, " example"] | Float[np.ndarray, " example"] | None = None,
) -> Erasers:
    """Fit an eraser at each site.

    Args:
      erasure: how.
      on: the activations: `Vectors` of one token rule, or `Sequences`, of which each token is a row. A token has its
        own label if the examples have token labels, else the label of its example.
      train: the examples to fit on. None: all.
      labels: the concept to erase, in place of the examples' own labels.

    Raises:
      UserError: the labels do not fit, the training part has one class only, or there are several token rules.
    """
    data, train = on.data, np.ones(len(on.data), bool) if train is None else np.asarray(train, bool)
    if train.shape != (len(data),):
        raise UserError(f"train has shape {train.shape}: give one entry for each of the {len(data)} examples")
    if isinstance(on, Vectors):
        if len(on.rules) > 1:
            raise UserError(f"an eraser is fitted for one token rule, and there are {', '.join(map(str, on.rules))}")
        rows, tokens = {site: x[0] for site, x in on.values.items()}, train
    else:
        rows, tokens = dict(on.values), on.read & train[:, None]
    of_row = row_labels(data, labels, tokens=tokens.ndim == 2)
    if np.issubdtype(of_row.dtype, np.integer):
        tokens = tokens & (of_row >= 0)
    z = jnp.asarray(concept_of(of_row[tokens], len(data.classes) if labels is None and data.classes else None))
    return Erasers(erasure, {site: erasure.fit(jnp.asarray(x[tokens]), z) for site, x in rows.items()})


def row_labels(data: LabelledTokens, labels: np.ndarray | None, *, tokens: bool) -> np.ndarray:
    """The label of each example, or of each token `[example, pos]`; -1 where a token has none."""
    if tokens and labels is None and data.token_labels is not None:
        return np.asarray(data.token_labels)
    own = np.asarray(data.labels if labels is None else labels)
    if own.shape != (len(data),):
        raise UserError(f"labels have shape {own.shape}: give one for each of the {len(data)} examples")
    return np.broadcast_to(own[:, None], data.tokens.shape) if tokens else own
