"""Circular probes and interventions: a model that adds on a circle by construction, and closed forms."""

from __future__ import annotations

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jax_interp.analysis.circular import fit_circle, intervention_effects
from jax_interp.core.errors import UserError
from jax_interp.core.pytrees import register_dataclass
from jax_interp.surgery import Site

M, D = 7, 16
RNG = np.random.default_rng(0)
PLANE = np.linalg.qr(RNG.normal(size=(D, D)))[0]


@register_dataclass
@dataclasses.dataclass(frozen=True)
class Clock:
    """`model([[a, b]])`: a day and an offset; the logits of the last position are cos of the angle to each day.

    The value `x` of a day is its point on a circle, a constant, and two directions that the answer does not use. The
    days are tokens 0 to 6, the offsets 7 to 13.
    """

    embed: jax.Array
    plane: jax.Array
    centre: jax.Array

    def __call__(self, tokens, *, taps=()):
        site = Site.open(taps)
        x = site("x", self.embed[tokens])
        point = x[:, 0] @ self.plane - self.centre[None]
        turn = 2 * jnp.pi * (tokens[:, 1] - M).astype(jnp.float32) / M
        c, s = jnp.cos(turn), jnp.sin(turn)
        turned = jnp.stack([c * point[:, 0] - s * point[:, 1], s * point[:, 0] + c * point[:, 1]], axis=1)
        days = 2 * jnp.pi * jnp.arange(M, dtype=jnp.float32) / M
        logits = 10 * turned @ jnp.stack([jnp.cos(days), jnp.sin(days)])
        logits = jnp.concatenate([logits, jnp.full((len(tokens), M), -30.0)], axis=1)
        return site.close(jnp.broadcast_to(logits[:, None], (len(tokens), 2, 2 * M)))


def clock(mean_in_plane: float = 0.0) -> tuple[Clock, np.ndarray, np.ndarray]:
    """(the model, all prompts, the day of each)"""
    turn = 2 * np.pi * np.arange(M) / M
    embed = np.zeros((2 * M, D))
    embed[:M] = np.stack([np.cos(turn), np.sin(turn)], 1) @ PLANE[:2] + 3 * PLANE[2]
    # what else depends on the day: another harmonic, which is uncorrelated with the circle
    embed[:M] += 0.5 * np.stack([np.cos(2 * turn), np.sin(3 * turn)], 1) @ PLANE[3:5] + mean_in_plane * PLANE[0]
    tokens = np.array([[a, M + b] for a in range(M) for b in range(M)])
    arrays = (jnp.asarray(one, jnp.float32) for one in (embed, PLANE[:2].T, [mean_in_plane, 0]))
    return Clock(*arrays), tokens, tokens[:, 0]


def answer(prompt, number):
    return (number + prompt % M) % M


def test_the_probe_reads_the_number():
    model, tokens, alpha = clock()
    x = model.embed[tokens[:, 0]]
    probe = fit_circle(x, alpha, M)
    assert float(probe.residual) == pytest.approx(0, abs=1e-10)
    np.testing.assert_allclose((np.asarray(probe.angle(x)) - alpha + 0.5) % M, 0.5, atol=1e-4)
    np.testing.assert_allclose(np.linalg.norm(probe.points(x), axis=1), 1, atol=1e-5)
    unrelated = fit_circle(RNG.normal(size=(5000, 6)), RNG.integers(0, M, 5000), M)
    assert float(unrelated.residual) == pytest.approx(1, abs=0.01)


def test_both_conventions_are_their_closed_forms():
    """The probe reads circle(α) from the centred one, and from the published one circle(α) less the mean's point."""
    x, alpha = RNG.normal(size=(60, 9)) + 2, RNG.integers(0, M, 60)
    probe = fit_circle(x, alpha, M)
    beta, radius = np.arange(M), np.linspace(0.5, 2, M)
    circle = radius[:, None] * np.stack([np.cos(2 * np.pi * beta / M), np.sin(2 * np.pi * beta / M)], 1)
    centred = probe.moved_to(beta, radius=radius)
    np.testing.assert_allclose(probe.points(centred), circle, atol=1e-4)
    # nothing else moves: what differs from the mean lies in two dimensions
    assert np.linalg.matrix_rank(np.asarray(centred) - x.mean(0), tol=1e-4) == 2
    published = probe.moved_to(beta, radius=radius, convention="published")
    own = np.asarray(probe.mean) @ np.asarray(probe.axes) @ np.asarray(probe.map)
    np.testing.assert_allclose(probe.points(published), circle - own, atol=1e-4)


@pytest.mark.parametrize("centre", [0.0, 1.5])
def test_moving_along_the_circle_moves_the_answer(centre):
    """The logit of an angle is 10 cos: a move to another day changes it by 10 (1 - cos), in the mean 10 · 7/6. Where
    the circle's centre is not 0, the published convention moves the centre too, and misses."""
    model, tokens, alpha = clock(centre)
    probe = fit_circle(model.embed[tokens[:, 0]], alpha, M)
    found = intervention_effects(model, "x", probe, jnp.asarray(tokens), 0, alpha, answer)
    assert {effect.patches for effect in found.values()} == {M * M * (M - 1)}
    clean = 10 * M / (M - 1)
    for name in ("circle", "components", "whole value"):
        assert found[name].clean == pytest.approx(clean, rel=1e-3)
        assert found[name].logit_difference == pytest.approx(-clean, rel=1e-3)
        assert found[name].accuracy == 1
    assert abs(found["mean"].logit_difference) < 1e-3
    assert found["mean"].accuracy < 0.5
    published = found["circle (published)"].accuracy
    assert published == 1 if centre == 0 else published < 0.8


def test_what_is_no_circle_is_refused():
    x = RNG.normal(size=(10, 6))
    for call, message in (
        (lambda: fit_circle(x, np.arange(9), M), "shape"),
        (lambda: fit_circle(x, np.arange(10) / 2, M), "whole"),
        (lambda: fit_circle(x * np.nan, np.arange(10), M), "NaN"),
        (lambda: fit_circle(x, np.arange(10), M, components=10), "components"),
        (lambda: fit_circle(x, np.arange(10) % 2, M), "at least 3"),
        (lambda: fit_circle(np.ones((10, 6)), np.arange(10), M), "no plane"),
    ):
        with pytest.raises(UserError, match=message):
            call()
    model, tokens, alpha = clock()
    probe = fit_circle(model.embed[tokens[:, 0]], alpha, M)
    some = alpha != 3
    with pytest.raises(UserError, match=r"numbers \[3\]"):
        intervention_effects(model, "x", probe, jnp.asarray(tokens[some]), 0, alpha[some], answer)
