"""Rotations in superposition: T small circuits of d neurons in one network of D < T · d neurons, and when this fails.

Each circuit (d = 4 neurons) has a vector x in the plane. In every layer it rotates x by its own angle θ_t:

    a = (1.5 α, .5 α, x_0 + α, x_1 + α);    α = a_0 - a_1;    x = (a_2, a_3) - α;    a ← relu(w_t a + b)

A slot is a group of four neurons. In every layer a circuit occupies S of the D / d slots, with different slots in each
layer. Any two circuits share at most one slot. The network is the sum of all circuits. The mean w̄ of the circuits has
the matrix M, which makes the mean interference zero:

    W = w̄ ⊗ M + (1/S) Σ_t (w_t - w̄) ⊗ |e_t^l⟩⟨e_t^{l-1}|

See Linsefors, "Circuits in superposition 2" and "Rotations in superposition" (2025). Every mechanism is known exactly
(`circuit_weight`), and there are more mechanisms than neurons.
"""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Iterator
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int, Key

from jax_interp.core.errors import UserError
from jax_interp.core.layer import upcast_leaves
from jax_interp.core.pytrees import register_dataclass
from jax_interp.surgery import Site, depth_of, read, run_blocks
from jax_interp.toys.layers import Linear
from jax_interp.toys.toy import TOYS, Toy

d = 4
"""The number of neurons in a small circuit."""
BIAS = (-0.5, -1.5, -1.0, -1.0)


@register_dataclass
@dataclasses.dataclass(frozen=True, eq=False)
class Layer:
    """`relu(linear(x))`. Its values are `pre` and `post`."""

    linear: Linear

    def __call__(self, x: Float[Array, "batch neuron"], site: Site) -> Float[Array, "batch neuron"]:
        pre = site("pre", self.linear(x, site / "linear"), "batch neuron")
        return site("post", jax.nn.relu(pre), "batch neuron")


@register_dataclass
@dataclasses.dataclass(frozen=True, eq=False)
class Rotations:
    """`model(a)` maps the initial activations of the small circuits, `[batch, T·4]`, to their final activations.

    Values: `input`, `embed`, `blocks.<l>.pre`, `blocks.<l>.post` (`readout` gives the circuits' activations), `output`.
    """

    embed: Linear
    blocks: list[Layer]
    angles: Float[Array, "T"]
    """The angle θ_t of each circuit."""
    slots: Float[Array, "layer T slot"]
    """1 where a circuit occupies a slot."""

    def __call__(self, a: Float[Array, "batch circuit"], *, taps: tuple = ()) -> Any:
        site = Site.open(taps, self.blocks)
        x = site("embed", self.embed(site("input", a, "batch feature"), site / "embed"), "batch neuron")
        x = run_blocks(self.blocks, x, site)
        out = self.readout(x, depth_of(self.blocks) - 1)
        return site.close(site("output", out.reshape(a.shape[0], -1), "batch feature"))

    def readout(self, post: Float[Array, "batch neuron"], layer: int) -> Float[Array, "batch T 4"]:
        """The activations of all circuits after a layer: the mean over the slots of each circuit.

        Args:
          post: the layer's `post`.
          layer: the layer.
        """
        slots = self.slots[layer]
        values = post.reshape(post.shape[0], d, -1)
        return jnp.einsum("bds,ts->btd", values, slots) / jnp.sum(slots[0])

    def circuit_weight(self, t: Int[Array, ""] | int, layer: int) -> Float[Array, "neuron neuron"]:
        """The part of a layer's matrix that belongs to circuit t: `w_t ⊗ |e^l⟩⟨e^{l-1}| / S`. Its rank is at most 4.

        Args:
          t: the circuit.
          layer: the layer, counted from 1.

        Returns:
          `[d_in, d_out]`.
        """
        before, after = self.slots[layer - 1, t], self.slots[layer, t]
        return _large(small_weights(self.angles[t]), jnp.outer(before, after) / jnp.sum(after))


def rotations(key: Key[Array, ""], T: int = 557, D: int = 1000, S: int = 6, layers: int = 5) -> Rotations:
    """Make a network of T circuits with random angles in D neurons. With T = 557 it needs 80 MB.

    Args:
      key: random key of the angles and slots.
      T: number of circuits.
      D: number of neurons in a layer, a multiple of 4.
      S: number of slots of a circuit.
      layers: number of layers. Each layer is one rotation.

    Raises:
      UserError: T circuits do not fit.
    """
    at, where = jax.random.split(key)
    n = D // d
    angles = jax.random.uniform(at, (T,), maxval=2 * jnp.pi)
    slots = slot_indicators(where, T, n, S, layers)
    w = jax.vmap(small_weights)(angles)
    mean = jnp.mean(w, axis=0)
    bias = jnp.repeat(jnp.asarray(BIAS), n)
    # The matrix of the first layer is the identity, because the embedding already applies w_t.
    into = jnp.einsum("tij,ts->tijs", jnp.swapaxes(w, 1, 2), slots[0]).reshape(T * d, D)
    blocks = [Layer(Linear(jnp.eye(D), bias))]
    for before, after in itertools.pairwise(slots):
        own = jnp.einsum("tij,tr,ts->jris", w - mean[None], before, after, optimize=True).reshape(D, D) / S
        blocks.append(Layer(Linear(_large(mean, _shared(before, after) / S) + own, bias)))
    return Rotations(Linear(into), blocks, angles, slots)


def small_weights(angle: Float[Array, ""]) -> Float[Array, "4 4"]:
    """The matrix `w_t` `[out, in]` of one circuit: it computes α and x, and rotates x."""
    c, s = jnp.cos(angle), jnp.sin(angle)
    two, zero = jnp.full_like(c, 2.0), jnp.zeros_like(c)
    step = [two, -two, zero, zero]
    rows = [step, step, [2 - (c - s), (c - s) - 2, c, -s], [2 - (s + c), (s + c) - 2, s, c]]
    return jnp.stack([jnp.stack(row) for row in rows])


def initial_activations(
    x: Float[Array, "batch T 2"], active: Bool[Array, "batch T"]
) -> tuple[Float[Array, "batch circuit"], Float[Array, "batch T 2"]]:
    """The network's input.

    Args:
      x: a vector for each circuit.
      active: True for the circuits that are on.

    Returns:
      `(a, x)`: the initial activations, and x with zeros where a circuit is off.
    """
    alpha = active.astype(x.dtype)[..., None]
    x = x * alpha
    a = jnp.concatenate([1.5 * alpha, 0.5 * alpha, x + alpha], axis=-1)
    return a.reshape(a.shape[0], -1), x


def circuit_state(a: Float[Array, "batch T 4"]) -> tuple[Float[Array, "batch T"], Float[Array, "batch T 2"]]:
    """`(α, x)` of each circuit, computed from its activations a."""
    alpha = a[..., 0] - a[..., 1]
    return alpha, a[..., 2:] - alpha[..., None]


def rotate(x: Float[Array, "batch T 2"], angles: Float[Array, "T"], times: int) -> Float[Array, "batch T 2"]:
    """x rotated `times` times by the angle of each circuit. This is what the network should compute."""
    c, s = jnp.cos(times * angles)[None], jnp.sin(times * angles)[None]
    return jnp.stack([c * x[..., 0] - s * x[..., 1], s * x[..., 0] + c * x[..., 1]], axis=-1)


def rotation_errors(
    model: Rotations, key: Key[Array, ""], z: int, batch: int = 256, chunks: int = 8
) -> dict[str, Float[Array, "layer"]]:
    """The error of x after each layer, with z circuits on at random points of the unit circle.

    Args:
      model: the network.
      key: random key of the inputs.
      z: number of circuits that are on.
      batch: number of rows in a batch.
      chunks: number of batches.

    Returns:
      For each layer: "active", the mean |x - x*|² of circuits that are on (guessing the mean gives 1); "worst", the
      largest error of a circuit that is on; "inactive", the mean error of circuits that are off; "alpha", the mean
      squared error of α in circuits that are on; "firing", the share of neurons that are on.
    """
    model = upcast_leaves(model)
    T = model.angles.shape[0]
    post = [f"blocks.{layer}.post" for layer in range(depth_of(model))]

    def chunk(key: Array) -> Any:
        pick, turn = jax.random.split(key)
        order = jax.vmap(lambda key: jax.random.permutation(key, T)[:z])(jax.random.split(pick, batch))
        active = jnp.any(jax.nn.one_hot(order, T, dtype=bool), axis=1)
        angle = jax.random.uniform(turn, (batch, T), maxval=2 * jnp.pi)
        a, x = initial_activations(jnp.stack([jnp.cos(angle), jnp.sin(angle)], axis=-1), active)
        acts = read(model, *post, output=False)(a)
        rows = []
        for layer, name in enumerate(post):
            alpha, seen = circuit_state(model.readout(acts[name], layer))
            error = jnp.sum((seen - rotate(x, model.angles, layer + 1)) ** 2, axis=-1)
            of = lambda value: jnp.sum(jnp.where(active, value, 0.0))
            rows.append(
                {
                    "active": of(error) / (batch * z),
                    "inactive": jnp.sum(jnp.where(active, 0.0, error)) / (batch * (T - z)),
                    "alpha": of((alpha - 1) ** 2) / (batch * z),
                    "firing": jnp.mean(acts[name] > 0),
                    "worst": jnp.max(jnp.where(active, error, 0.0)),
                }
            )
        return jax.tree.map(lambda *leaves: jnp.stack(leaves), *rows)

    found = jax.lax.map(chunk, jax.random.split(key, chunks))
    return {name: (jnp.max if name == "worst" else jnp.mean)(value, axis=0) for name, value in found.items()}


def expected_errors(T: int, D: int, S: int, z: int, layer: int) -> dict[str, float]:
    """The theory's prediction (leading terms) of the "active" and "inactive" errors of `rotation_errors`.

    Args:
      T: number of circuits.
      D: number of neurons in a layer.
      S: number of slots of a circuit.
      z: number of circuits that are on.
      layer: number of layers so far, at least 1.
    """
    share = d / D - 1 / (S * T)
    active = (layer - 1) * T * share**2 * (z + 8 * (z - 1)) + 9 * layer * share * (z - 1)
    return {"active": active, "inactive": z * share}


def _shared(before: Float[Array, "T slot"], after: Float[Array, "T slot"]) -> Float[Array, "slot slot"]:
    """S · M. It is 1 if some circuit goes from one slot to the other. Elsewhere it is a negative number that makes the
    interference of circuits sum to zero."""
    T, S = before.shape[0], jnp.sum(before[0])
    cap = jnp.minimum(before.T @ after, 1.0)
    through = jnp.einsum("tr,rs,us->tu", before, cap, after, optimize=True)
    q = jnp.sum(through) - jnp.trace(through)
    chi = q / (S**2 * T * (T - 1) - q)
    return cap - chi * (1 - cap)


def _large(w: Float[Array, "out in"], slots: Float[Array, "before after"]) -> Float[Array, "neuron neuron"]:
    """`w ⊗ slots` as a matrix `[d_in, d_out]`. Neuron i of slot s has the index `i · slots + s`."""
    full = jnp.einsum("ij,rs->jris", w, slots)
    return full.reshape(w.shape[1] * slots.shape[0], -1)


@TOYS.register
class RotationsToy(Toy[Rotations]):
    """More circuits than neurons, in superposition. The network is made by hand."""

    name = "rotations"

    def example(self, key: Key[Array, ""]) -> Rotations:
        return rotations(key, T=6, D=40, S=3, layers=2)

    def sample(self, model: Rotations, key: Key[Array, ""], batch: int) -> Float[Array, "batch circuit"]:
        on, turn = jax.random.split(key)
        angle = jax.random.uniform(turn, (batch, len(model.angles)), maxval=2 * jnp.pi)
        active = jax.random.bernoulli(on, 1 / len(model.angles), angle.shape)
        return initial_activations(jnp.stack([jnp.cos(angle), jnp.sin(angle)], axis=-1), active)[0]


def allowed_steps(S: int, n: int) -> Iterator[int]:
    """The steps of arithmetic progressions of S terms in n slots, in the order in which they are used.

    If a prime below S divides a step, two progressions could share two slots, so such steps are left out. If S is not a
    prime, a step may also be multiplied by S, S², ...
    """
    primes = [q for q in range(2, S) if _is_prime(q)]
    for step in range(1, n):
        if step * (S - 1) >= n:
            return
        if any(step % q == 0 for q in primes):
            continue
        yield step
        if not _is_prime(S):
            power = S
            while step * power * (S - 1) < n:
                yield step * power
                power *= S


def assign_slots(T: int | None, n: int, S: int) -> Int[np.ndarray, "T S"]:
    """Choose slots for circuits so that any two circuits share at most one slot. Slots are arithmetic progressions.

    Args:
      T: number of circuits; None: as many as possible (557 for S = 6 and n = 250).
      n: number of slots.
      S: number of slots of a circuit.

    Raises:
      UserError: T circuits do not fit.
    """
    rows: list[list[int]] = []
    steps = allowed_steps(S, n)
    step, shift, i = next(steps, 0), 0, 0
    while step and (T is None or len(rows) < T):
        if i + step * (S - 1) >= n:
            shift += 1
            if shift >= step or shift + step * (S - 1) >= n:
                step, shift = next(steps, 0), 0
            i = shift
            continue
        rows.append([i + s * step for s in range(S)])
        i += step * S
    if T is not None and len(rows) < T:
        raise UserError(f"{T} circuits of {S} slots with overlaps of at most 1 do not fit into {n}: {len(rows)} do")
    return np.array(rows).reshape(-1, S)


def max_circuits(n: int, S: int) -> int:
    """The largest number of circuits of S slots that fit into n slots."""
    return len(assign_slots(None, n, S))


def slot_indicators(key: Key[Array, ""], T: int, n: int, S: int, layers: int) -> Float[Array, "layer T n"]:
    """For each layer, 1 where a circuit occupies a slot. The circuits are shuffled in every layer.

    Args:
      key: random key of the shuffles.
      T: number of circuits.
      n: number of slots.
      S: number of slots of a circuit.
      layers: number of layers.
    """
    hot = jnp.asarray(np.eye(n, dtype=np.float32)[assign_slots(T, n, S)].sum(axis=1))
    return jax.vmap(lambda key: jax.random.permutation(key, hot, axis=0))(jax.random.split(key, layers))


def _is_prime(q: int) -> bool:
    return q > 1 and all(q % r for r in range(2, int(q**0.5) + 1))
