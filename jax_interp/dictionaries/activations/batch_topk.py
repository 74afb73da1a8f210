"""BatchTopK: the k·B largest pre-activations in a batch of B rows are on (Bussmann et al. 2024, arXiv:2412.06410).

Rows have different numbers of latents, k on average. Inference does not depend on a batch: a latent is on if its
pre-activation is above a threshold. The threshold is the running mean of the smallest value that was on in each
training batch. The dictionary is exported as a JumpReLU.
"""

from __future__ import annotations

import dataclasses
from functools import partial
from typing import TYPE_CHECKING, Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.typing import DTypeLike
from jaxtyping import Array, Float, Int

from jax_interp.core.errors import UserError
from jax_interp.core.pytrees import register_dataclass
from jax_interp.dictionaries.activations.activation import ACTIVATIONS, Activation, SelectiveActivation
from jax_interp.dictionaries.activations.jumprelu import Jump
from jax_interp.dictionaries.activations.pre import bias_gradient, centre_gradient, subtract_centre
from jax_interp.dictionaries.activations.select import batch_top_k, nth_largest
from jax_interp.dictionaries.activations.topk import encode_masked, row_norms
from jax_interp.dictionaries.codes import BatchCode, DenseCode
from jax_interp.dictionaries.sharding import feature_shards, row_devices
from jax_interp.dictionaries.sparse.products import entries_outer

if TYPE_CHECKING:
    from jax_interp.dictionaries.forms.dictionary import Dictionary


@ACTIVATIONS.register
@register_dataclass
@dataclasses.dataclass(frozen=True)
class BatchTopK(SelectiveActivation):
    """The k·B largest pre-activations of a batch of B rows are on."""

    k: int = dataclasses.field(default=32, metadata={"static": True})
    """Mean number of latents on, per row."""
    decay: float = dataclasses.field(default=0.99, metadata={"static": True})
    """The decay of the running mean `threshold`."""
    weighted: bool = dataclasses.field(default=False, metadata={"static": True})
    """Select latents by pre-activation · ‖W_dec,i‖. The threshold is then compared with this product."""
    threshold: Float[Array, ""] | None = None
    """Running mean of the smallest value that was on. A step has the weight 1 - decay. It is negative before the first
    step. `init` creates it."""
    limit: Float[Array, ""] | None = None
    """A number up to k that is used instead of k. It may be traced, so a sweep over k is one compiled program."""
    kernels: bool = dataclasses.field(default=False, metadata={"static": True})
    """As in `TopK`, but only in training."""

    supports_limit = True
    cross_layer = True

    @property
    def _running_threshold(self) -> Float[Array, ""]:
        if self.threshold is None:
            raise UserError(
                f"BatchTopK(k={self.k}) has no threshold, and without a batch it needs one: give threshold=, as in "
                f"BatchTopK({self.k}, threshold=jnp.asarray(0.7)). A dictionary from training or from a file has it"
            )
        return self.threshold

    def init(self, n_features: int, dtype: DTypeLike) -> BatchTopK:
        super().init(n_features, dtype)
        return dataclasses.replace(self, threshold=jnp.asarray(-1, dtype))

    def encode(self, dictionary: Dictionary, x: Float[Array, "row d"]) -> DenseCode:
        """Encode for inference: latents above the threshold are on."""
        pre = dictionary.linear(x) + dictionary.b_enc[None, :]
        score = pre * row_norms(dictionary.W_dec)[None, :] if self.weighted else pre
        least = jnp.maximum(self._running_threshold, jnp.zeros((), pre.dtype))
        return DenseCode(jnp.where(score > jnp.broadcast_to(least, pre.shape), pre, jnp.zeros_like(pre)), pre)

    def encode_batch(self, dictionary: Dictionary, x: Float[Array, "row d"]) -> BatchCode | DenseCode:
        """Encode for training: the largest of the batch are on. The backward pass touches only these latents."""
        if feature_shards() > 1 or row_devices() > 1:  # a list of the entries of all rows would gather the rows
            norms = row_norms(dictionary.W_dec) if self.weighted else None
            n = x.shape[0] * (self.k if self.limit is None else self.limit)
            return encode_masked(dictionary, x, norms, lambda score: nth_largest(score, n))
        norms = row_norms(dictionary.W_dec) if self.weighted else None
        centre = dictionary.b_dec if dictionary.centred else None
        entries: Any = _encode_batch(
            self.k, self.kernels, x, dictionary.W_enc, dictionary.b_enc, centre, norms, self.limit
        )
        values, rows, features = entries
        return BatchCode(values, rows, features, x.shape[0], self.kernels)

    def observe(self, dictionary: Dictionary, code: BatchCode | DenseCode) -> BatchTopK:
        """Move the threshold towards the smallest value that is on in this batch."""
        values = code.values
        if self.weighted:
            values = values * code.gather(row_norms(dictionary.W_dec))
        least = jnp.min(jnp.where(values > 0, values, jnp.asarray(jnp.inf, values.dtype)))
        threshold = self._running_threshold
        followed = self.decay * threshold + (1 - self.decay) * least
        now = jnp.where(threshold < 0, least, followed)
        return dataclasses.replace(self, threshold=jnp.where(jnp.isfinite(least), now, threshold))

    def scaled(self, factor: Float[Array, "..."]) -> BatchTopK:
        return dataclasses.replace(self, threshold=self._running_threshold * factor)

    def with_unit_rows(self, norms: Float[Array, " feature"]) -> BatchTopK:
        # With `weighted`, the threshold already refers to products with the norms.
        return dataclasses.replace(self, weighted=False) if self.weighted else self.scaled(norms)

    def warm_start(self, given: Dictionary, address: object) -> Activation | None:
        """Continue from an exported BatchTopK: a JumpReLU with equal thresholds. Their value becomes `threshold`."""
        if not isinstance(given.activation, Jump):
            return super().warm_start(given, address)
        exported = given.activation.threshold
        each = np.asarray(exported * row_norms(given.W_dec) if self.weighted else exported)
        if not np.allclose(each, each[0], rtol=1e-3):
            raise UserError(
                f"the dictionary given for {address} is a JumpReLU with thresholds from {each.min():.3g} to "
                f"{each.max():.3g}; the config has BatchTopK, which has one threshold: use JumpReLU() in the config"
            )
        least = jnp.asarray(each[0], exported.dtype)
        seen = least > 1e-30  # a smaller threshold was exported before the first training step
        return dataclasses.replace(self, threshold=jnp.where(seen, least, -jnp.ones_like(least)))

    def for_inference(self, dictionary: Dictionary) -> Dictionary:
        return self.as_jumprelu(dictionary)

    def as_jumprelu(self, dictionary: Dictionary) -> Dictionary:
        least = jnp.maximum(self._running_threshold, jnp.finfo(dictionary.W_enc.dtype).tiny)
        if self.weighted:
            threshold = least / row_norms(dictionary.W_dec)
        else:
            threshold = jnp.broadcast_to(least, (dictionary.n_features,))
        return dataclasses.replace(dictionary, activation=Jump(jnp.log(threshold)))


@partial(jax.custom_vjp, nondiff_argnums=(0, 1))
def _encode_batch(
    k: int,
    kernels: bool,
    x: Float[Array, "row d"],
    W_enc: Float[Array, "d feature"],
    b_enc: Float[Array, " feature"],
    centre: Float[Array, " d"] | None,
    norms: Float[Array, " feature"] | None,
    limit: Float[Array, ""] | None,
) -> tuple[Float[Array, " entry"], Int[Array, " entry"], Int[Array, " entry"]]:
    score = subtract_centre(x, centre) @ W_enc + b_enc[None, :]
    if norms is not None:
        # The selection compares scores with the n-th largest, and XLA may compute them again for that. The product
        # comes last, because a sum of products is rounded differently where it becomes a fused multiply-add.
        score = score * norms[None, :]
    values, rows, features = batch_top_k(score, k, limit)
    if norms is not None:
        values = values / norms.at[features].get(mode="clip")
    return jax.nn.relu(values), rows, features


def _forward(k, kernels, x, W_enc, b_enc, centre, norms, limit):
    out: Any = _encode_batch(k, kernels, x, W_enc, b_enc, centre, norms, limit)
    return out, (x, W_enc, centre, *out)


def _backward(k, kernels, residuals, cotangents):
    x, W_enc, centre, values, rows, features = residuals
    g = jnp.where(values > 0, cotangents[0], jnp.zeros((), values.dtype))
    n_features = W_enc.shape[1]
    g_b_enc = bias_gradient(g, rows, features, len(x), n_features)
    g_W_enc = entries_outer(g, rows, features, subtract_centre(x, centre), n_features, True, kernels)
    z = jnp.zeros((len(x), n_features), g.dtype).at[rows, features].add(g, mode="drop")
    g_x = z @ W_enc.T  # XLA removes this if it is not used
    return g_x, g_W_enc, g_b_enc, centre_gradient(g_b_enc, W_enc, centre), None, None


_encode_batch.defvjp(_forward, _backward)
