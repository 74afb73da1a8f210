"""Progress measures: they show how a transformer learns modular addition before its test loss falls.

Nanda et al. 2023 (arXiv 2301.05217). The rule uses a few frequencies w_k = 2πk/p. The embedding has cos and sin of w_k
a and w_k b, the neurons have cos and sin of w_k (a + b), and the logits have cos w_k (a + b - c). Grids of all pairs
are ordered as `all_pairs` returns them: b changes fastest.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from jax_interp.core.errors import UserError
from jax_interp.core.layer import upcast
from jax_interp.core.leaves import flatten
from jax_interp.core.processes import to_host
from jax_interp.models.decoder import Decoder
from jax_interp.surgery import Model
from jax_interp.surgery.taps import Tapped
from jax_interp.toys.modular_addition import all_pairs, answer_logits, cross_entropy, mlp_activations, mlp_to_logits


def fourier_basis(p: int) -> Float[Array, "p p"]:
    """The Fourier basis as orthonormal rows: the constant, then cos and sin of 2πk x / p for k = 1 to (p - 1) / 2.

    Raises:
      UserError: p is even, or below 3.
    """
    if p < 3 or not p % 2:
        raise UserError(f"p={p}: these measures need an odd modulus of at least 3")
    x, k = jnp.arange(p), jnp.arange(1, p // 2 + 1)
    phase = (2 * jnp.pi / p) * ((k[:, None] * x[None]) % p).astype(jnp.float32)
    waves = jnp.stack([jnp.cos(phase), jnp.sin(phase)], axis=1).reshape(-1, p) * (2 / p) ** 0.5
    return jnp.concatenate([jnp.full((1, p), p**-0.5), waves])


def frequency_norms(W: Float[Array, "p width"]) -> Float[Array, "frequency"]:
    """The norm of W's components at each frequency 1 to (p - 1) / 2, cos and sin together."""
    parts = jnp.sum((fourier_basis(W.shape[0]) @ W) ** 2, axis=1)[1:]
    return jnp.sqrt(parts.reshape(-1, 2).sum(axis=1))


def gini(x: Float[Array, "count"]) -> Float[Array, ""]:
    """The Gini coefficient: 0 if all values are equal (also if all are 0), near 1 if one value has the whole sum."""
    x = jnp.sort(jnp.abs(x))
    n = x.shape[0]
    rank = jnp.arange(1, n + 1, dtype=x.dtype)
    return jnp.sum((2 * rank - n - 1) * x) / jnp.maximum(n * jnp.sum(x), jnp.finfo(x.dtype).tiny)


def neuron_frequencies(
    post: Float[Array, "pair d_mlp"], p: int
) -> tuple[Int[Array, "d_mlp"], Float[Array, "d_mlp frequency"]]:
    """The frequency of each neuron.

    Args:
      post: the neurons' activations on all pairs.
      p: the modulus.

    Returns:
      `(frequency, share)`: the best frequency of each neuron, counted from 1; and the share of the neuron's variance
      over all pairs that each frequency explains. A frequency explains by terms up to second order in cos and sin of a
      and b.

    Raises:
      UserError: `post` does not have p² rows, or p is even.
    """
    if post.shape[0] != p * p:
        raise UserError(f"activations of {post.shape[0]} pairs for p={p}: give those of all {p * p} pairs, in order")
    basis = fourier_basis(p)
    grid = post.reshape(p, p, -1)
    power = jnp.einsum("ka,abn,lb->kln", basis, grid, basis, optimize=True) ** 2
    total = jnp.sum(power, axis=(0, 1)) - power[0, 0]

    def share(k: Array) -> Array:
        at = jnp.stack([jnp.zeros_like(k), 2 * k - 1, 2 * k])
        block = power[at][:, at]
        return (jnp.sum(block, axis=(0, 1)) - block[0, 0]) / jnp.maximum(total, 1e-12)

    shares = jax.vmap(share)(jnp.arange(1, p // 2 + 1)).T
    return jnp.argmax(shares, axis=1) + 1, shares


def frequency_shares(model: Decoder) -> Float[Array, "frequency"]:
    """The share of the variance of all neurons that each frequency explains. Neurons are weighted by their variance."""
    p = model.config.vocab_size - 1
    post = mlp_activations(model, *all_pairs(p))
    shares = neuron_frequencies(post, p)[1]
    weight = jnp.var(post, axis=0)
    total = jnp.sum(weight)
    return jnp.sum(shares * weight[:, None], axis=0) / jnp.maximum(total, jnp.finfo(total.dtype).tiny)


def key_frequencies(model: Decoder, least: float = 0.05) -> list[int]:
    """The frequencies that explain at least the share `least` of the neurons' variance. They are counted from 1, with
    the largest share first."""
    shares = to_host(frequency_shares(model))
    return [int(k) + 1 for k in (-shares).argsort() if shares[k] >= least]


def progress(model: Decoder, mask: Bool[Array, "pair"], keys: Bool[Array, "frequency"]) -> dict[str, Float[Array, ""]]:
    """The progress measures of one model.

    Args:
      model: the transformer, at any step of its training.
      mask: True for the training pairs.
      keys: True for the key frequencies, which the finished model uses.

    Returns:
      `restricted_loss`: the loss on all pairs, with only the mean of the logits and their component along cos and sin
      of w_k (a + b) for the key frequencies. `excluded_loss`: the loss on training pairs without this component.
      `embed_gini`, `unembed_gini`: the Gini coefficient of the norms of frequencies in W_E and in the map from neurons
      to logits. `weights`: the sum of all squared parameters. For a model under surgery, the last three are those of
      the original model.

    Raises:
      UserError: `mask` or `keys` has another shape; or the model has no map from neurons to logits (`mlp_to_logits`).
    """
    p = model.config.vocab_size - 1
    if mask.shape != (p * p,) or keys.shape != (p // 2,):
        raise UserError(
            f"mask of shape {mask.shape} and keys of shape {keys.shape}: p={p} has {p * p} pairs, {p // 2} frequencies"
        )
    a, b = all_pairs(p)
    logits, answer = answer_logits(model, a, b), (a + b) % p
    k = jnp.arange(1, p // 2 + 1)
    phase = (2 * jnp.pi / p) * ((k[:, None] * (a + b)[None]) % p).astype(jnp.float32)
    waves = jnp.concatenate([jnp.cos(phase), jnp.sin(phase)]) * (2**0.5 / p)  # orthonormal over the pairs
    waves = waves * jnp.concatenate([keys, keys]).astype(waves.dtype)[:, None]
    kept = jnp.einsum("kx,kc->xc", waves, jnp.einsum("kx,xc->kc", waves, logits))
    restricted = kept + jnp.mean(logits, axis=0, keepdims=True)
    return {
        "restricted_loss": jnp.mean(cross_entropy(restricted, answer)),
        "excluded_loss": jnp.mean(cross_entropy(logits - kept, answer), where=mask),
        "embed_gini": gini(frequency_norms(upcast(model.embed.weight[...])[:p])),
        "unembed_gini": gini(frequency_norms(mlp_to_logits(model).T)),
        "weights": sum((jnp.sum(upcast(leaf) ** 2) for leaf in flatten(_original(model)).values()), jnp.zeros(())),
    }


def _original(model: Model) -> Model:
    """The model inside all surgeries."""
    while isinstance(model, Tapped):
        model = model.model
    return model
