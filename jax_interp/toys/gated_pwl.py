"""A network made by hand that computes several one-dimensional functions, each switched on by a bit (APD 2025, §4).

    y = Σ_k α_k F_k(x)      F_k(x) = a sin(b x + c) + d cos(e x + f) + g, piecewise linear between `n_neurons` knots

The stream is [x, α_0 .. α_{n-1}, y]. The neurons of a function have the bias -S, and its bit has the weight S. S is
larger than any x, so the neurons are off if the bit is off. The neurons of all functions are shuffled over the layers.
Each function is therefore one mechanism that spans layers. `GatedPWLTruth` says which neurons belong to it.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int, Key

from jax_interp.core.errors import UserError
from jax_interp.core.pytrees import register_dataclass
from jax_interp.surgery import Site, iter_blocks, run_blocks
from jax_interp.toys.layers import Linear, ReluMLP, ResidBlock
from jax_interp.toys.toy import TOYS, Toy


@register_dataclass
@dataclasses.dataclass(frozen=True, eq=False)
class GatedPWL:
    """`model(inputs)` returns y `[batch, 1]`, for inputs `[batch, 1 + function]` (x, then the bits)."""

    blocks: list[ResidBlock]

    def __call__(self, inputs: Float[Array, "batch input"], *, taps: tuple = ()) -> Any:
        site = Site.open(taps, self.blocks)
        inputs = site("input", inputs, "batch feature")
        x = site("embed", jnp.pad(inputs, ((0, 0), (0, 1))), "batch d_model")
        x = run_blocks(self.blocks, x, site)
        return site.close(site("output", x[:, -1:], "batch feature"))


@dataclasses.dataclass(frozen=True)
class GatedPWLConfig:
    """The functions and their inputs."""

    n_functions: int = 4
    n_neurons: int = 10
    """The number of neurons of each function, one neuron for each knot."""
    n_layers: int = 2
    low: float = 0.0
    """The smallest x."""
    high: float = 5.0
    """The largest x."""
    suppression: float = 100.0
    """The weight S of the bits."""
    simple_bias: bool = False
    """True: all biases are -S, and the weight of the bit encodes the place of the knot."""
    probability: float = 0.05
    """The probability that a bit is on."""

    def __post_init__(self) -> None:
        if self.n_functions * self.n_neurons % self.n_layers or self.n_neurons < 2:
            raise UserError(
                f"{self.n_functions} functions of {self.n_neurons} neurons cannot be divided evenly over "
                f"{self.n_layers} layers"
            )


@register_dataclass
@dataclasses.dataclass(frozen=True, eq=False)
class GatedPWLTruth:
    """The functions that the network computes, and the neurons of each function."""

    coefficients: Float[Array, "function 7"]
    knots: Float[Array, "knot"]
    owner: Int[Array, "layer neuron"]
    """The function of every neuron."""

    def functions(self, x: Float[Array, "batch"]) -> Float[Array, "batch function"]:
        """The exact F_k. The network equals them at the knots."""
        a, b, c, d, e, f, g = self.coefficients.T[:, None]
        x = x[:, None]
        return a * jnp.sin(b * x + c) + d * jnp.cos(e * x + f) + g

    def target(self, inputs: Float[Array, "batch input"]) -> Float[Array, "batch 1"]:
        """What the network computes: Σ_k α_k F_k, with F_k interpolated between the knots."""
        values = self.functions(self.knots)
        each = jax.vmap(lambda column: jnp.interp(inputs[:, 0], self.knots, column), in_axes=1, out_axes=1)(values)
        return jnp.sum(inputs[:, 1:] * each, axis=1, keepdims=True)

    def mechanisms(self, model: GatedPWL) -> dict[str, Float[Array, "function d_in d_out"]]:
        """The part of every matrix that belongs to each function, by address: the columns or rows of the function's
        neurons, and zeros elsewhere. The parts sum to the matrix."""
        parts = {}
        for layer, mlp in _mlps(model):
            mine = jax.nn.one_hot(self.owner[layer], self.coefficients.shape[0]).T
            parts[f"blocks.{layer}.mlp.up"] = mine[:, None, :] * mlp.up.weight[None]
            parts[f"blocks.{layer}.mlp.down"] = mine[:, :, None] * mlp.down.weight[None]
        return parts


def gated_pwl(key: Key[Array, ""], config: GatedPWLConfig = GatedPWLConfig()) -> tuple[GatedPWL, GatedPWLTruth]:
    """Make the network. Returns the network and its `GatedPWLTruth`.

    Args:
      key: random key of the functions (a, d, g uniform in [-1, 1), b, e in [.1, 1), c, f in [-π, π)) and the shuffle.
      config: the sizes.
    """
    draw, shuffle = jax.random.split(key)
    n, m = config.n_functions, config.n_neurons
    low = jnp.asarray([-1.0, 0.1, -jnp.pi, -1.0, 0.1, -jnp.pi, -1.0])
    high = jnp.asarray([1.0, 1.0, jnp.pi, 1.0, 1.0, jnp.pi, 1.0])
    coefficients = low[None] + (high - low)[None] * jax.random.uniform(draw, (n, 7))
    knots = jnp.linspace(config.low, config.high, m)
    order = jax.random.permutation(shuffle, n * m).reshape(config.n_layers, -1)
    truth = GatedPWLTruth(coefficients, knots, order // m)

    # The kink of a neuron is one knot before the value that it sets: the first neuron sets the sum to F(low).
    step = (config.high - config.low) / (m - 1)
    kinks = knots - step
    slopes = jnp.diff(truth.functions(knots), axis=0, prepend=jnp.zeros((1, n))) / step
    written = jnp.diff(slopes, axis=0, prepend=jnp.zeros((1, n)))  # [knot, function]
    blocks = []
    for layer in range(config.n_layers):
        function, knot = order[layer] // m, order[layer] % m
        bit = jax.nn.one_hot(function + 1, n + 2).T * config.suppression
        kink = kinks[knot]
        bias = -config.suppression - kink
        if config.simple_bias:
            bit, bias = (
                bit - jax.nn.one_hot(function + 1, n + 2).T * kink[None],
                jnp.full_like(kink, -config.suppression),
            )
        up = bit + jax.nn.one_hot(jnp.zeros_like(function), n + 2).T
        down = jax.nn.one_hot(jnp.full_like(function, n + 1), n + 2) * written[knot, function][:, None]
        blocks.append(ResidBlock(ReluMLP(Linear(up, bias), Linear(down))))
    return GatedPWL(blocks), truth


def gated_inputs(
    key: Key[Array, ""], batch: int, config: GatedPWLConfig = GatedPWLConfig()
) -> Float[Array, "batch input"]:
    """Inputs of the network: x uniform in [low, high), and bits that are on with `config.probability`.

    Args:
      key: random key.
      batch: number of rows.
      config: the functions.

    Returns:
      `[batch, 1 + function]`.
    """
    value, bits = jax.random.split(key)
    x = jax.random.uniform(value, (batch, 1), minval=config.low, maxval=config.high)
    on = jax.random.bernoulli(bits, config.probability, (batch, config.n_functions))
    return jnp.concatenate([x, on.astype(x.dtype)], axis=1)


def _mlps(model: GatedPWL) -> Iterator[tuple[int, ReluMLP]]:
    """The MLP of every layer, in any layout."""
    for layer, block in iter_blocks(model):
        assert isinstance(block, ResidBlock)
        yield layer, block.mlp


@TOYS.register
class GatedPWLToy(Toy[GatedPWL]):
    """Piecewise-linear functions, each switched on by a bit. The network is made by hand."""

    name = "gated-pwl"

    def example(self, key: Key[Array, ""]) -> GatedPWL:
        return gated_pwl(key, GatedPWLConfig(n_functions=2, n_neurons=4))[0]

    def sample(self, model: GatedPWL, key: Key[Array, ""], batch: int) -> Float[Array, "batch input"]:
        bits = next(_mlps(model))[1].up.weight.shape[0] - 2  # the stream is x, the bits, y
        return gated_inputs(key, batch, GatedPWLConfig(n_functions=bits))
