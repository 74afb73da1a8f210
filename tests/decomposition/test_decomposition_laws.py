"""Generated laws: what can be decomposed is right, the rest is refused; zero matrices; targets in 16 bits."""

from __future__ import annotations

import dataclasses
import math
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from generated import drawn
from tiny_tms import Linear, Tiny, sparse

from jax_interp.core.errors import UserError
from jax_interp.core.pytrees import register_dataclass
from jax_interp.decomposition import Components, DecompositionConfig, decompose, masked_output, train_decomposition
from jax_interp.decomposition.evaluate import evaluate, linearity_of, report_rows
from jax_interp.decomposition.importance import ScalarMLP
from jax_interp.decomposition.linearity import LinearitySettings
from jax_interp.decomposition.losses import (
    Faithfulness,
    HiddenReconstruction,
    ImportanceMinimality,
    StochasticReconstruction,
)
from jax_interp.decomposition.losses.faithfulness import relative_faithfulness
from jax_interp.decomposition.masks import masks_from_values
from jax_interp.surgery import Site
from jax_interp.surgery.taps import static
from jax_interp.training import QUIET, NonFinite

LINEARITY = LinearitySettings(1, (1,), (2,), pairs=2)


@register_dataclass
@dataclasses.dataclass(frozen=True, eq=False)
class DrawnPart:
    """A part with a `weight`, which computes `x @ weight + bias` or something near it."""

    weight: Any
    bias: Any
    other: Any
    reads: str = static()
    change: str = static()

    def __call__(self, x, site):
        weight = self.weight.T if self.change == "transposed" else self.weight
        y = weight[x] if self.reads == "ids" else x @ weight
        if self.change == "scaled":
            y = y * self.other[0]
        if self.change == "bias under another name":
            y = y + jnp.expand_dims(self.other, range(y.ndim - 1))
        if self.change == "second matrix":
            y = y + jnp.roll(y, 1, axis=-1) * self.other[0]
        if self.bias is not None:
            y = y + jnp.expand_dims(self.bias, range(y.ndim - 1))
        if self.change == "rectified":
            y = jax.nn.relu(y)
        return y.reshape(*y.shape[:-1], 2, -1) if self.change == "split into heads" else y


@register_dataclass
@dataclasses.dataclass(frozen=True, eq=False)
class OnePart:
    part: DrawnPart

    def __call__(self, x, *, taps=()):
        site = Site.open(taps)
        return site.close(site("output", self.part(x, site / "part"), "batch pos d_out"))


LINEAR = ("none",)
OTHER = ("transposed", "scaled", "bias under another name", "second matrix", "rectified", "split into heads")


def one_part(rng) -> tuple[OnePart, jax.Array, str]:
    """A model of one part, inputs, and what was drawn."""
    change = rng.choice([*LINEAR * 3, *OTHER])
    reads = rng.choice(["vectors", "vectors", "ids"])
    d_in, d_out = int(rng.integers(1, 9)), 2 * int(rng.integers(1, 5))
    if change == "transposed" and rng.random() < 0.7:
        d_in = d_out  # square, so that shapes do not show it
    special = rng.choice(["random", "identity", "zero"])  # also weights whose values hide a transpose or a scale
    weight = {"identity": np.eye(d_in, d_out), "zero": np.zeros((d_in, d_out))}.get(
        special, rng.standard_normal((d_in, d_out))
    )
    out = d_in if change == "transposed" else d_out
    f32 = lambda values: jnp.asarray(values, jnp.float32)
    bias = f32(rng.standard_normal(out)) if rng.random() < 0.5 else None
    part = DrawnPart(f32(weight), bias, f32(2 + rng.random(out)), str(reads), str(change))
    width = d_out if change == "transposed" else d_in
    x = rng.integers(0, width, (2, 3)).astype(np.int32) if reads == "ids" else f32(rng.standard_normal((2, 3, width)))
    return OnePart(part), jnp.asarray(x), f"{change}, {reads}, {d_in}x{d_out}, {special}, bias={bias is not None}"


@pytest.mark.hardening
def test_a_part_is_decomposed_rightly_or_refused(tally):
    """With all components on, V U = W and Δ off, the output is the target's. Every other part is refused."""
    tried, broken = drawn(40, 300), []
    for seed in range(tried):
        rng = np.random.default_rng([12, seed])
        model, x, what = one_part(rng)
        try:
            parts = decompose(model, "part", C=8, key=jax.random.key(0))
        except UserError as error:
            if model.part.change in LINEAR or "x @ weight + bias" not in str(error):
                broken.append(f"seed {seed}, {what}: refused: {error}")
            continue
        u, s, v = np.linalg.svd(np.asarray(model.part.weight, np.float64), full_matrices=False)
        exact = Components(jnp.asarray(u * s, jnp.float32), jnp.asarray(v, jnp.float32))
        parts = dataclasses.replace(parts, components={"part": exact})
        on = masks_from_values({"part": jnp.ones((2, 3, len(s)), jnp.float32)})
        error = np.abs(np.asarray(masked_output(parts, on, x)) - np.asarray(model(x))).max()
        if model.part.change not in LINEAR or error > 1e-4:
            broken.append(f"seed {seed}, {what}: accepted, error {error:.2g}")
    tally("a part of a model is decomposed rightly or refused", tried=tried, broken=len(broken))
    assert not broken, "\n".join(broken)


def test_a_part_is_also_checked_inside_jit():
    rng = np.random.default_rng(0)
    model = OnePart(DrawnPart(jnp.eye(4), None, jnp.ones(4), "vectors", "transposed"))
    with pytest.raises(UserError, match=r"'part' cannot be decomposed.*x @ weight\.T"):
        jax.eval_shape(lambda model: decompose(model, "*", C=2, key=jax.random.key(0)), model)
    model = OnePart(DrawnPart(jnp.asarray(rng.integers(0, 9, (4, 4)), jnp.int8), None, jnp.ones(4), "vectors", "none"))
    with pytest.raises(UserError, match="its weights are int8"):
        decompose(model, "*", C=2, key=jax.random.key(0))


def two_layers(rng, zeros: tuple[bool, bool], dtype=jnp.float32) -> Tiny:
    """A tiny network of two matrices, which may be zero, with biases or without."""
    draw = lambda *shape: jnp.asarray(rng.standard_normal(shape), dtype)
    weight = lambda zero, *shape: jnp.zeros(shape, dtype) if zero else draw(*shape)
    bias = draw(5) if rng.random() < 0.5 else None
    return Tiny(Linear(weight(zeros[0], 5, 2)), Linear(weight(zeros[1], 2, 5), bias))


def config(steps: int, **changes) -> DecompositionConfig:
    losses = (
        ImportanceMinimality(),
        StochasticReconstruction(),
        Faithfulness(relative=True),
        HiddenReconstruction(relative=True),
    )
    options = {"matrices": ("linear1", "linear2"), "C": 3, "importance": ScalarMLP(hidden=4), "warm_up": None}
    return DecompositionConfig(**options | {"losses": losses, "steps": steps, "batch": 8} | changes)


def numbers(tree: Any) -> list[float]:
    """All numbers of JSON values, with NaN for None."""
    if isinstance(tree, dict):
        return [n for value in tree.values() for n in numbers(value)]
    if isinstance(tree, list):
        return [n for value in tree for n in numbers(value)]
    return [] if isinstance(tree, str) else [math.nan if tree is None else float(tree)]


def sample(key):
    return sparse(key, 8, p=0.5)


def figures(config, trained, x) -> dict[str, Any]:
    found = evaluate(config, trained, x, adversary_steps=(2,))
    rows = report_rows(linearity_of(config, trained, x, settings=LINEARITY))
    return found | {"linearity": {row["name"]: row for row in rows}}


@pytest.mark.hardening
def test_zero_matrices_have_finite_figures(tally):
    """Training goes on, every figure is a number or a None, and the relative faithfulness is its closed form."""
    tried, broken = drawn(4, 8), []
    for seed in range(tried):
        rng = np.random.default_rng([13, seed])
        zeros = [(True, False), (False, True), (True, True), (False, False)][seed % 4]
        model = two_layers(rng, zeros)
        trained = train_decomposition(config(3), model, sample=sample, log=QUIET)  # raises NonFinite
        found = figures(config(3), trained, sample(jax.random.key(1)))
        squares = [float(np.sum(np.asarray(trained.model.delta(n), np.float64) ** 2)) for n in trained.model.names]
        sizes = [float(np.sum(np.asarray(w, np.float64) ** 2)) for w in (model.linear1.weight, model.linear2.weight)]
        right = np.mean([square / (size or max(sizes) or 1.0) for square, size in zip(squares, sizes, strict=True)])
        if any(np.isinf(n) or abs(n) > 1e12 for n in numbers(found)):
            broken.append(f"seed {seed}, zeros {zeros}: a figure is not finite: {found}")
        if not np.allclose(found["relative_faithfulness"], right, rtol=1e-4):
            broken.append(f"seed {seed}, zeros {zeros}: {found['relative_faithfulness']}, not {right}")
    tally("figures of zero matrices", tried=tried, broken=len(broken))
    assert not broken, "\n".join(broken)


@pytest.mark.hardening
def test_a_target_in_16_bits_is_measured_in_float32(tally):
    """Training and all figures of a 16-bit target are those of the same weights in float32."""
    tried, broken = drawn(2, 6), []
    for seed in range(tried):
        rng, dtype = np.random.default_rng([14, seed]), (jnp.bfloat16, jnp.float16)[seed % 2]
        narrow = two_layers(rng, (False, False), dtype)
        wide = jax.tree.map(lambda leaf: leaf.astype(jnp.float32), narrow)
        x = sample(jax.random.key(1))
        got, want = (
            numbers(figures(config(3), train_decomposition(config(3), model, sample=sample, log=QUIET), x))
            for model in (narrow, wide)
        )
        if not np.allclose(got, want, rtol=1e-4, atol=1e-6, equal_nan=True):
            broken.append(f"seed {seed}, {dtype.__name__}: {got} not {want}")
    tally("decompositions of 16-bit targets", tried=tried, broken=len(broken))
    assert not broken, "\n".join(broken)


def test_the_advice_for_a_loss_that_is_not_finite_at_the_start():
    """Before the first update the learning rate cannot be the reason."""
    model = two_layers(np.random.default_rng(0), (False, False))
    model = dataclasses.replace(model, linear2=Linear(model.linear2.weight.at[0, 0].set(jnp.nan)))
    with pytest.raises(NonFinite, match=r"step 1.*not been updated yet") as caught:
        train_decomposition(config(3), model, sample=sample, log=QUIET)
    assert "learning rate" not in str(caught.value)


def test_zero_and_nonzero_matrices_in_relative_faithfulness():
    model = decompose(two_layers(np.random.default_rng(1), (True, True)), "*", C=2, key=jax.random.key(0))
    products = [np.sum(np.asarray(model.of(name).product(), np.float64) ** 2) for name in model.names]
    np.testing.assert_allclose(relative_faithfulness(model), np.mean(products), rtol=1e-5)  # divided by 1
