"""What kinds of probes get from `fit_probes`: the rows of some sites and token rules, on one device or on a mesh."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, NamedSharding
from jax.sharding import PartitionSpec as P
from jaxtyping import Int

from jax_interp.core.errors import UserError
from jax_interp.probes.gather import Sequences, Vectors
from jax_interp.probes.kind import Kind, PairRows, Rows, SequenceRows
from jax_interp.probes.labelled_tokens import LabelledTokens
from jax_interp.training.meshes import row_axes, row_shards
from jax_interp.training.sharding import put


def check_widths(on: Vectors | Sequences) -> None:
    """Raise UserError if the sites have different widths."""
    widths = {site: x.shape[-1] for site, x in on.values.items()}
    if len(set(widths.values())) > 1:
        raise UserError(f"the sites have different widths, {widths}: give one call for each width")


def pairs_of(data: LabelledTokens) -> Int[np.ndarray, "pair 2"]:
    """The contrast pairs of the examples. Raises UserError if there are none."""
    if data.pairs is None or not len(data.pairs):
        raise UserError(f"{data.name} has no contrast pairs")
    return data.pairs


def labels_and_weights(
    kind: Kind, on: Vectors | Sequences, y: np.ndarray, weight: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """The labels `[labels, row]` and weights `[split, row]` of a kind's rows: pairs or examples."""
    if kind.takes != "pairs":
        return y, weight
    first, second = pairs_of(on.data).T
    return y[:, first], np.minimum(weight[:, first], weight[:, second])


def rows_of(
    kind: Kind, on: Vectors | Sequences, places: Sequence[tuple[int, int]], y: np.ndarray, weight: np.ndarray
) -> Rows | PairRows | SequenceRows:
    """The rows at some places, with a leading axis for the places. On the host.

    Args:
      kind: the kind.
      on: the activations.
      places: the numbers of the site and of the rule of each place.
      y: the labels of the rows.
      weight: the weights of the rows.
    """
    sites = list(on.values.values())
    across = lambda a: np.broadcast_to(a, (len(places), *np.shape(a)))
    if isinstance(on, Sequences):
        x = np.stack([sites[site] for site, _ in places])
        tokens = None if on.data.token_labels is None else across(on.data.token_labels)
        return SequenceRows(x, across(on.read), across(y), tokens, across(weight))  # pyright: ignore[reportArgumentType]
    x = np.stack([sites[site][rule] for site, rule in places])
    if kind.takes == "rows":
        classes = max(2, len(on.data.classes))
        return Rows(x, across(y), across(weight), classes)  # pyright: ignore[reportArgumentType]
    first, second = pairs_of(on.data).T
    return PairRows(x[:, first], x[:, second], across(y), across(weight))  # pyright: ignore[reportArgumentType]


def on_device(tree: Any, mesh: Mesh | None, like_rows: int = 1) -> Any:
    """Arrays of the host on the device, or with their rows split over a mesh.

    Where the mesh does not divide the number of rows, copies of the last row are added. `padded` gives them weight 0.

    Args:
      tree: arrays whose axis `like_rows` has the rows.
      mesh: the mesh. None: one device.
      like_rows: the number of the axis of rows.
    """
    if mesh is None:
        return jax.tree.map(jnp.asarray, tree)
    ways = row_shards(mesh)

    def place(a: Any) -> jax.Array:
        a = np.asarray(a)
        missing = -a.shape[like_rows] % ways
        a = np.pad(a, [(0, missing if i == like_rows else 0) for i in range(a.ndim)], mode="edge")
        return put(a, NamedSharding(mesh, P(*[None] * like_rows, row_axes(mesh))))

    return jax.tree.map(place, tree)


def padded(weight: np.ndarray, mesh: Mesh | None) -> np.ndarray:
    """Weights `[..., row]` with 0 for the rows that `on_device` adds."""
    if mesh is None:
        return weight
    missing = -weight.shape[-1] % row_shards(mesh)
    return np.pad(weight, [(0, 0)] * (weight.ndim - 1) + [(0, missing)])
