"""A model of three layers whose circuit is known, in which a cross-layer transcoder can skip a step.

    layer 0   A = x1 and x2           layer 1   B = A or x3           layer 2   C = B and x4

The four inputs are the bits of a token, 0 to 15. Every variable has a direction of its own in the stream, bits 0 and 1,
and each layer's MLP writes exactly one of them. C depends on x1, x2 and x3 through B alone: without B there is no C.

A cross-layer transcoder may write C from what layer 0 reads, since all inputs are there, and a sparsity penalty rewards
it: one latent in place of three. It then says the same as the model on every input, and the wrong thing when B is
taken away (Lange et al. 2026). `hop_kept` measures that on any model with these names.
"""

from __future__ import annotations

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int, Key

from jax_interp.surgery import Site, Zero, at, edit, read, run_blocks
from jax_interp.toys.toy import TOYS, Toy

LAYERS = 3
READS = tuple(f"blocks.{i}.mlp_in" for i in range(LAYERS))
WRITES = tuple(f"blocks.{i}.mlp_out" for i in range(LAYERS))
X1, X2, X3, X4, A, B, C = range(7)


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class ReluMLP:
    """One layer: x + relu(x W_in + b_in) W_out."""

    W_in: Float[Array, "d neuron"]
    b_in: Float[Array, " neuron"]
    W_out: Float[Array, "neuron d"]

    def __call__(self, x: Float[Array, "batch pos d"], site: Any) -> Float[Array, "batch pos d"]:
        pre = site("mlp_in", x) @ self.W_in + self.b_in[None, None]
        return site("resid_post", x + site("mlp_out", jax.nn.relu(pre) @ self.W_out))


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class BooleanModel:
    """Its output is the stream after the last layer; `variables` [7, d] are the orthonormal directions of x1 … x4, A, B
    and C."""

    variables: Float[Array, "variable d"]
    blocks: list[ReluMLP]

    def __call__(self, tokens: Int[Array, "batch pos"], *, taps: tuple = ()) -> Any:
        site = Site.open(taps, self.blocks)
        bits = (tokens[..., None] >> jnp.arange(4)[None, None]) & 1
        x = site("embed", bits.astype(self.variables.dtype) @ self.variables[:4])
        return site.close(run_blocks(self.blocks, x, site))


def boolean_model(key: Key[Array, ""], d: int = 8) -> BooleanModel:
    """The model, its variables in a random orthonormal basis of R^d, d ≥ 7."""
    v = jnp.linalg.qr(jax.random.normal(key, (d, d)))[0][:7]

    def conjunction(first: int, second: int, out: int) -> ReluMLP:
        return ReluMLP((v[first] + v[second])[:, None], -jnp.ones(1), v[out][None])

    either = v[A] + v[X3]
    disjunction = ReluMLP(jnp.stack([either, either], axis=1), jnp.asarray([0.0, -1.0]), jnp.stack([v[B], -v[B]]))
    return BooleanModel(v, [conjunction(X1, X2, A), disjunction, conjunction(B, X4, C)])


def hop_kept(model: Any, truth: BooleanModel) -> Float[Array, ""]:
    """How much of C goes away with B, over the inputs on which C is true, as a part of what goes away in `truth` (all
    of it): 1 where `model`, such as a replacement model of `truth`, has the hop from B to C, 0 where C does not come
    from B at all."""
    tokens = jnp.arange(16)[None]
    written = lambda model: (read(model, WRITES[2], output=False)(tokens)[WRITES[2]] @ truth.variables[C])[0]
    is_true = written(truth)
    lost = written(model) - written(edit(model, at(WRITES[1], Zero())))
    return jnp.sum(lost * is_true) / jnp.sum(is_true * is_true)


@TOYS.register
class BooleanCircuitToy(Toy[BooleanModel]):
    """A circuit of three Boolean steps, one a layer; made by hand."""

    name = "boolean-circuit"

    def example(self, key: Key[Array, ""]) -> BooleanModel:
        return boolean_model(key)

    def sample(self, model: BooleanModel, key: Key[Array, ""], batch: int) -> Int[Array, "batch 1"]:
        return jax.random.randint(key, (batch, 1), 0, 16)
