"""The Boolean circuit of toys/ as a network with two classes, and causal models of it: one right, others wrong."""

from __future__ import annotations

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np

from jax_interp.circuits.causal_variables import CausalModel, Variable, counterfactual_pairs, interchange_data
from jax_interp.core.pytrees import register_dataclass
from jax_interp.surgery import Site, run_blocks
from jax_interp.toys.boolean_circuit import A, B, C, boolean_model

BITS = (False, True)
INPUTS = {f"x{i}": Variable(BITS) for i in (1, 2, 3, 4)}

RIGHT = CausalModel(
    INPUTS
    | {
        "A": Variable(BITS, lambda x1, x2: x1 & x2),
        "B": Variable(BITS, lambda A, x3: A | x3),
        "C": Variable(BITS, lambda B, x4: B & x4),
    },
    output="C",
)
# The same function of the inputs, by other variables: (x1 and x2 and x4) or (x3 and x4).
WRONG = CausalModel(
    INPUTS
    | {
        "A": Variable(BITS, lambda x1, x2, x4: x1 & x2 & x4),
        "B": Variable(BITS, lambda x3, x4: x3 & x4),
        "C": Variable(BITS, lambda A, B: A | B),
    },
    output="C",
)


@register_dataclass
@dataclasses.dataclass(frozen=True)
class Classes:
    """The Boolean model with logits of C = false and C = true."""

    variables: jax.Array
    blocks: list

    def __call__(self, tokens, *, taps=()):
        site = Site.open(taps, self.blocks)
        bits = (tokens[..., None] >> jnp.arange(4)[None, None]) & 1
        x = site("embed", bits.astype(self.variables.dtype) @ self.variables[:4])
        true = 10 * (run_blocks(self.blocks, x, site) @ self.variables[C] - 0.5)
        return site.close(jnp.stack([-true, true], axis=-1))


def network(seed=0):
    made = boolean_model(jax.random.key(seed))
    return Classes(made.variables, made.blocks)


def encode(setting):
    return np.stack([sum(setting[f"x{i}"].astype(int) << (i - 1) for i in (1, 2, 3, 4))], axis=1)


def task(causal_model, variables, n=256, seed=0, **options):
    pairs = counterfactual_pairs(causal_model, variables, n, seed=seed, **options)
    return interchange_data(pairs, encode, {False: 0, True: 1}, positions={"here": 0})


DIRECTIONS = {"A": A, "B": B}
