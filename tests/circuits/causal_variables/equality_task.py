"""A network that holds two equalities in one subspace each, among other directions, and reads them linearly."""

from __future__ import annotations

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np

from jax_interp.circuits.causal_variables import CausalModel, Variable, counterfactual_pairs, interchange_data
from jax_interp.core.pytrees import register_dataclass
from jax_interp.surgery import Site

D = 12
OBJECTS = range(4)
EQUALITIES = CausalModel(
    {
        **{name: Variable(OBJECTS) for name in "wxyz"},
        "left": Variable((False, True), lambda w, x: w == x),
        "right": Variable((False, True), lambda y, z: y == z),
        "answer": Variable(range(4), lambda left, right: 2 * left + right),
    },
    output="answer",
)
# The same answers from variables that the network does not have: left is (w = x), but is mixed with the right side.
MIXED = CausalModel(
    {
        **{name: Variable(OBJECTS) for name in "wxyz"},
        "mixed": Variable((False, True), lambda w, x, y, z: (w == x) ^ (y == z)),
        "right": Variable((False, True), lambda y, z: y == z),
        "answer": Variable(range(4), lambda mixed, right: 2 * (mixed ^ right) + right),
    },
    output="answer",
)


@register_dataclass
@dataclasses.dataclass(frozen=True)
class EqualityNet:
    """`net(objects [pair, 4])` returns logits [pair, 4]. Its value `hidden` is Q (left, right, the objects' bits)."""

    Q: jax.Array

    def __call__(self, objects, *, taps=()):
        site = Site.open(taps)
        bits = jnp.stack([(objects >> i) & 1 for i in range(2)], axis=-1).reshape(len(objects), -1)
        sides = jnp.stack([objects[:, 0] == objects[:, 1], objects[:, 2] == objects[:, 3]], axis=1)
        parts = jnp.concatenate([sides.astype(self.Q.dtype), bits.astype(self.Q.dtype)], axis=1) * 2 - 1
        hidden = site("hidden", parts @ self.Q[:, : parts.shape[1]].T, "batch feature")
        left, right = ((hidden @ self.Q[:, i])[:, None] for i in range(2))
        signs = jnp.asarray([[-1.0, -1.0, 1.0, 1.0], [-1.0, 1.0, -1.0, 1.0]])
        return site.close(site("logits", left * signs[:1] + right * signs[1:], "batch feature"))


def equality_net(seed=0):
    return EqualityNet(jnp.linalg.qr(jax.random.normal(jax.random.key(seed), (D, D)))[0])


def equality_data(variables, n=512, seed=0, causal_model=EQUALITIES, **options):
    pairs = counterfactual_pairs(causal_model, variables, n, seed=seed, **options)
    encode = lambda setting: np.stack([setting[name] for name in "wxyz"], axis=1)
    return interchange_data(pairs, encode, lambda answer: answer, read_at=None)
