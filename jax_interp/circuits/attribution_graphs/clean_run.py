"""The clean run of a prompt: which features are active, and what their dictionary does not explain."""

from __future__ import annotations

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

from jax_interp.core.errors import UserError
from jax_interp.core.layer import upcast
from jax_interp.dictionaries.forms.cross_layer import Source
from jax_interp.dictionaries.replacement import Replacement
from jax_interp.surgery import read
from jax_interp.surgery.calling import call

CHUNK = 512
"""The number of positions that are encoded at once. It bounds the dense latents: [CHUNK, feature]."""


@dataclasses.dataclass(frozen=True, eq=False)
class ActiveFeatures:
    """The features that are on, in the order of layer, position and feature. Nothing is stored for the others.

    Attributes:
      layer: the index of the source in its dictionary.
      pos: the position.
      feature: the index of the feature in its source.
      activation: its activation.
    """

    layer: Int[np.ndarray, " active"]
    pos: Int[np.ndarray, " active"]
    feature: Int[np.ndarray, " active"]
    activation: Float[np.ndarray, " active"]

    def __len__(self) -> int:
        return len(self.layer)

    def find(self, layer: int, pos: int, feature: int) -> int:
        """The number of one feature. Raises `UserError` if it is not on there."""
        found = np.flatnonzero((self.layer == layer) & (self.pos == pos) & (self.feature == feature))
        if not len(found):
            raise UserError(f"feature {feature} of layer {layer} is not active at position {pos}")
        return int(found[0])


@dataclasses.dataclass(frozen=True, eq=False)
class CleanRun:
    """What an attribution graph needs of the run without interventions.

    Attributes:
      tokens: the prompt.
      active: the active features.
      errors: the value at each written address minus its reconstruction. It is 0 at positions without nodes.
      reads: the value that each source reads.
      logits: the logits of the last position, as the model gives them.
    """

    tokens: Int[Array, " pos"]
    active: ActiveFeatures
    errors: Float[Array, "layer pos d_out"]
    reads: Float[Array, "layer pos d_in"]
    logits: Float[np.ndarray, " vocab"]


def clean_run(
    local: Replacement, tokens: Int[Array | np.ndarray, " pos"], without_nodes: tuple[int, ...] = ()
) -> CleanRun:
    """Run the model once and encode the values that the dictionary reads, some positions at a time.

    Args:
      local: the model and its dictionary, as `replacement` returns them (its `errors` and `where` are not used).
      tokens: one prompt without padding.
      without_nodes: positions whose features and errors are no nodes.

    Raises:
      UserError: the prompt has a wrong shape, values are not finite, or the dictionary is not linear where it is on.
    """
    tokens = jnp.asarray(tokens)
    if tokens.ndim != 1 or tokens.shape[0] == 0 or not jnp.issubdtype(tokens.dtype, jnp.integer):
        raise UserError(f"an attribution graph is of one prompt: give token ids [pos], not {tokens.shape}")
    n = tokens.shape[0]
    if wrong := [p for p in without_nodes if not 0 <= p < n]:
        raise UserError(f"without_nodes names position {wrong[0]}, but the prompt has the positions 0 to {n - 1}")
    logits, acts = call(read(local.model, *local.reads, *local.writes), tokens[None])
    xs, ys = (jnp.stack([_rows(acts[one]) for one in names]) for names in (local.reads, local.writes))
    _check_finite(local, xs, ys, logits[0, -1])
    parts, y_hat = [], [jnp.zeros(y.shape, local.dictionary.b_dec.dtype) for y in ys]
    for i, source in enumerate(local.dictionary.sources):
        for start in range(0, n, CHUNK):
            span = slice(start, min(start + CHUNK, n))
            z, written, misfit = _encoded(source, xs[i, span])
            z, rows = np.array(z), [p - start for p in without_nodes if span.start <= p < span.stop]
            _check_linear(source, local.reads[i], float(misfit))
            z[rows] = 0
            pos, feature = np.nonzero(z)
            parts.append((np.full(len(pos), i), pos + start, feature, z[pos, feature]))
            for j, part in enumerate(written):
                y_hat[i + j] = y_hat[i + j].at[span].add(part)
    errors = jnp.stack(ys) - jnp.stack(y_hat) - local.dictionary.b_dec[:, None]
    if without_nodes:
        errors = errors.at[:, jnp.asarray(without_nodes)].set(0)
    columns = [np.concatenate(column) for column in zip(*parts, strict=True)]
    integers = [column.astype(np.int32) for column in columns[:3]]
    active = ActiveFeatures(integers[0], integers[1], integers[2], columns[3])
    return CleanRun(tokens, active, errors, xs, np.asarray(upcast(logits[0, -1])))


@jax.jit
def _encoded(source: Source, x: Array) -> tuple[Array, list[Array], Array]:
    """(latents, what they and the skip write to each target, the largest deviation from the pre-activation)."""
    x = x.astype(source.W_enc.dtype)
    z = source.encode(x)
    pre = x @ source.W_enc + source.b_enc[None]
    scale = jnp.maximum(jnp.max(jnp.abs(pre)), jnp.asarray(1e-6, pre.dtype))
    misfit = jnp.max(jnp.where(z != 0, jnp.abs(z - pre), jnp.zeros_like(z))) / scale
    written = [z @ source.W_dec[:, j] for j in range(source.W_dec.shape[1])]
    if source.W_skip is not None:
        written[0] = written[0] + x @ source.W_skip
    return z, written, misfit


def _rows(value: Array) -> Float[Array, "pos d"]:
    """The value of the only prompt in at least float32, with the axes after the position merged."""
    return upcast(value[0]).reshape(value.shape[1], -1)


def _check_finite(local: Replacement, *values: Any) -> None:
    xs, ys, logits = values
    for names, group in ((local.reads, xs), (local.writes, ys)):
        for name, value in zip(names, group, strict=True):
            if not bool(jnp.isfinite(value).all()):
                raise UserError(f"{name} has values that are not finite on this prompt")
    if not bool(jnp.isfinite(logits).all()):
        raise UserError("the logits of the last position are not finite on this prompt")


def _check_linear(source: Source, address: str, misfit: float) -> None:
    """Where a feature is on, its activation must be its pre-activation: edges are derivatives of pre-activations."""
    tolerance = 100 * float(jnp.finfo(source.W_enc.dtype).eps)
    if not misfit <= tolerance:
        raise UserError(
            f"the dictionary that reads {address} ({type(source.activation).__name__}) does not pass the "
            f"pre-activation x W_enc + b_enc on where a feature is active (it differs by {misfit:.1e} of the largest): "
            "attribution graphs need ReLU, JumpReLU, TopK or BatchTopK"
        )
