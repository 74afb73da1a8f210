"""A model of three layers with a known circuit. A cross-layer transcoder of this model can skip a step.

    layer 0   A = x1 and x2           layer 1   B = A or x3           layer 2   C = B and x4

The four inputs are the bits of a token, 0 to 15. Every variable has its own direction in the stream and the value 0 or
1. The MLP of each layer writes exactly one variable. C depends on x1, x2 and x3 only through B: without B, C is 0.

A cross-layer transcoder can compute C from the input of layer 0, because all four bits are there. A sparsity penalty
rewards this solution, because it needs one latent instead of three. The output of such a transcoder equals the model's
output on every input, but it is wrong when B is ablated (Lange et al. 2026). `hop_kept` measures this on any model with
these addresses.
"""

from __future__ import annotations

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int, Key

from jax_interp.core.pytrees import register_dataclass
from jax_interp.surgery import Model, Site, Zero, at, edit, read, run_blocks
from jax_interp.toys.toy import TOYS, Toy

LAYERS = 3
READS = tuple(f"blocks.{i}.mlp_in" for i in range(LAYERS))
WRITES = tuple(f"blocks.{i}.mlp_out" for i in range(LAYERS))
X1, X2, X3, X4, A, B, C = range(7)


@register_dataclass
@dataclasses.dataclass(frozen=True)
class ReluLayer:
    """One layer: `x + relu(x W_in + b_in) W_out`. Its values are `mlp_in`, `mlp_out`, `resid_post`."""

    W_in: Float[Array, "d neuron"]
    b_in: Float[Array, " neuron"]
    W_out: Float[Array, "neuron d"]

    def __call__(self, x: Float[Array, "batch pos d"], site: Site) -> Float[Array, "batch pos d"]:
        pre = site("mlp_in", x) @ self.W_in + self.b_in[None, None]
        return site("resid_post", x + site("mlp_out", jax.nn.relu(pre) @ self.W_out))


@register_dataclass
@dataclasses.dataclass(frozen=True)
class BooleanModel:
    """`model(tokens)` returns the stream after the last layer, for tokens `[batch, pos]` from 0 to 15."""

    variables: Float[Array, "variable d"]
    """The orthonormal directions of x1 to x4, A, B and C."""
    blocks: list[ReluLayer]

    def __call__(self, tokens: Int[Array, "batch pos"], *, taps: tuple = ()) -> Any:
        site = Site.open(taps, self.blocks)
        bits = (tokens[..., None] >> jnp.arange(4)[None, None]) & 1
        x = site("embed", bits.astype(self.variables.dtype) @ self.variables[:4])
        return site.close(run_blocks(self.blocks, x, site))


def boolean_model(key: Key[Array, ""], d: int = 8) -> BooleanModel:
    """Make the model. Its variables have random orthonormal directions in R^d, d ≥ 7."""
    v = jnp.linalg.qr(jax.random.normal(key, (d, d)))[0][:7]

    def conjunction(first: int, second: int, out: int) -> ReluLayer:
        return ReluLayer((v[first] + v[second])[:, None], -jnp.ones(1), v[out][None])

    either = v[A] + v[X3]
    disjunction = ReluLayer(jnp.stack([either, either], axis=1), jnp.asarray([0.0, -1.0]), jnp.stack([v[B], -v[B]]))
    return BooleanModel(v, [conjunction(X1, X2, A), disjunction, conjunction(B, X4, C)])


def hop_kept(model: Model, truth: BooleanModel) -> Float[Array, ""]:
    """How much C decreases when B is ablated, on the inputs for which C is true.

    Args:
      model: a model with the addresses of `truth`, such as a replacement model of it.
      truth: the Boolean model. Here C falls to 0.

    Returns:
      The decrease of C divided by the decrease in `truth`: 1 if C is computed from B, 0 if C does not depend on B.
    """
    tokens = jnp.arange(16)[None]
    written = lambda model: (read(model, WRITES[2], output=False)(tokens)[WRITES[2]] @ truth.variables[C])[0]
    is_true = written(truth)
    lost = written(model) - written(edit(model, at(WRITES[1], Zero())))
    return jnp.sum(lost * is_true) / jnp.sum(is_true * is_true)


@TOYS.register
class BooleanCircuitToy(Toy[BooleanModel]):
    """A circuit of three Boolean steps, one in each layer. It is made by hand."""

    name = "boolean-circuit"

    def example(self, key: Key[Array, ""]) -> BooleanModel:
        return boolean_model(key)

    def sample(self, model: BooleanModel, key: Key[Array, ""], batch: int) -> Int[Array, "batch 1"]:
        return jax.random.randint(key, (batch, 1), 0, 16)
