"""Deep causal transcoding: a map Δ(θ) of a model as a sum of few factors (Mack and Turner 2024).

    linear        J  ≈ Σ σ_i u_i v_iᵀ                              the singular vectors of the Jacobian
    quadratic     H  ≈ Σ λ_i u_i ⊗ v_i ⊗ v_i                       alternating: u ← H(:, v, v), v ← H(u, v, :)
    exponential   Δ(θ) ≈ Σ α_i (exp(v_i · θ / R) - 1) u_i          alternating: u ← Δ(R v), v ← u · ∂Δ(R v)

Δ is the mean over prompts and tokens of the change of the target. Before each iteration the v are made orthonormal, so
that no two end at the same factor; afterwards u and v have norm 1.

Where this differs from the published code:
- Singular vectors are those of J on the row space of the random projections (Halko et al. 2011), not of the projected
  Jacobian itself. So the singular values are right too, and all is exact once there are as many projections as
  entries.
- u is updated before v, at no further cost; there both use the earlier one.
- exp(v · θ) and exp(-v · θ) are different factors. The signs that QR leaves are undone, and after each iteration the
  sign of v with the larger ‖Δ(R v)‖ is taken. Without this a search stays at -v, which is a smaller local optimum.
- The quadratic factors use second derivatives. The published code differentiates v ↦ J(0) v again, which is linear in
  v, so that its products are those of the Jacobian.
"""

from __future__ import annotations

import dataclasses
import math
from functools import partial
from typing import Any, Literal

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int, Key

from jax_interp.core.errors import UserError
from jax_interp.core.pytrees import register_dataclass
from jax_interp.models.sharding import rules_for
from jax_interp.probes.token_rules import TokenRule
from jax_interp.steering.elicitation.calibration import calibrated_radius
from jax_interp.steering.elicitation.derivatives import (
    hessian_along,
    hessian_between,
    jacobian_times,
    times_jacobian,
)
from jax_interp.steering.elicitation.effects import Between, Prompts, each, mean_change, placed_prompts
from jax_interp.steering.elicitation.factors import Factors
from jax_interp.steering.elicitation.sphere import orthonormal, random_on_sphere, unit
from jax_interp.surgery import Model
from jax_interp.training import Log, Place, RunTarget, SaveTo, automatic, automatic_step, fit, placed
from jax_interp.training.placement import replicated

Kind = Literal["linear", "quadratic", "exponential"]


@dataclasses.dataclass(frozen=True)
class DctConfig:
    """A decomposition of what a bias does."""

    where: Between
    """Where the bias is added, and where the change is read. The paper reads the last three tokens."""
    kind: Kind = "exponential"
    factors: int = 64
    radius: float | None = None
    """R, the norm of the vectors. None: calibrated, see calibration.py."""
    ratio: float = 0.5
    """The ratio at which the norm is calibrated."""
    iterations: int = 10
    """Of the quadratic and the exponential factors. The published code has 20 and 10."""
    beta: float = 1.0
    """The share of the new factors in an exponential iteration. Less is slower and steadier."""
    start: Literal["random", "jacobian"] = "jacobian"
    """Where the quadratic and exponential factors start."""
    projections: int = 32
    """The random projections of the Jacobian. As many as the target has entries are exact."""
    null: int = 64
    """The number of random vectors whose scores are given beside those of the factors."""
    at_once: int | None = None
    """The number of factors in one pass of the model. None: all."""
    seed: int = 0

    def __post_init__(self) -> None:
        if self.kind not in ("linear", "quadratic", "exponential"):
            raise UserError(f"kind={self.kind!r}: give linear, quadratic or exponential")
        if self.radius is not None and not (math.isfinite(self.radius) and self.radius > 0):
            raise UserError(f"radius={self.radius}: give a norm above 0, or None")
        if min(self.factors, self.iterations, self.projections) < 1 or self.null < 0:
            raise UserError(f"factors, iterations and projections are at least 1, and null at least 0: {self}")
        if not 0 < self.beta <= 1 or not self.ratio > 0:
            raise UserError(f"beta={self.beta} is above 0 and at most 1, and ratio={self.ratio} above 0")


@register_dataclass
@dataclasses.dataclass(frozen=True)
class Pairs:
    """Input and output directions, one pair in each row."""

    v: Float[Array, "factor d"]
    u: Float[Array, "factor d_target"]


def linear_factors(
    config: DctConfig, model: Model, prompts: Prompts, key: Key[Array, ""]
) -> tuple[Pairs, Float[Array, " factor"]]:
    """The singular vectors of the Jacobian, and its singular values, the largest first. At most as many as projections.

    Args:
      config: the number of projections.
      model: the model.
      prompts: the prompts and the addresses.
      key: the key of the projections.
    """
    change, width, out = partial(mean_change, model, prompts), prompts.width, prompts.clean.shape[-1]
    many = min(config.projections, out)
    drawn = jnp.eye(out) if many == out else orthonormal(jax.random.normal(key, (many, out), jnp.float32))
    rows = each(lambda u: times_jacobian(change, u, width), drawn, config.at_once)
    basis = jnp.linalg.qr(rows.T)[0].T
    images = each(partial(jacobian_times, change), basis, config.at_once)
    u, sigma, w = jnp.linalg.svd(images.T, full_matrices=False)
    return Pairs(jnp.matmul(w, basis, precision="highest"), u.T), sigma


@automatic_step
def quadratic_step(
    config: DctConfig, state: Pairs, step: Int[Array, ""], model: Model, prompts: Prompts
) -> tuple[Pairs, dict[str, Any]]:
    """One iteration of orthogonalised alternating least squares: u ← H(:, v, v), v ← H(u, v, :)."""
    change = partial(mean_change, model, prompts)

    def of_one(v: Array) -> tuple[Array, Array, Array]:
        along = hessian_along(change, v)
        return unit(hessian_between(change, unit(along), v)), unit(along), jnp.sqrt(jnp.sum(along**2))

    v, u, size = each(of_one, orthonormal(state.v), config.at_once)
    return Pairs(v, u), {"objective": jnp.mean(size)}


@automatic_step
def exponential_step(
    config: DctConfig, state: Pairs, step: Int[Array, ""], model: Model, prompts: Prompts, radius: Float[Array, ""]
) -> tuple[Pairs, dict[str, Any]]:
    """One orthogonalised gradient iteration: u ← Δ(R v), v ← u · ∂Δ(R v)."""
    change = partial(mean_change, model, prompts)

    def of_one(pair: Pairs) -> tuple[Pairs, Array]:
        far, pull = jax.vjp(change, radius * pair.v)
        u = unit(config.beta * unit(far) + (1 - config.beta) * pair.u)
        v = unit(config.beta * unit(pull(u)[0]) + (1 - config.beta) * pair.v)
        opposite = jnp.sum(change(-radius * v) ** 2) > jnp.sum(change(radius * v) ** 2)
        return Pairs(jnp.where(opposite, -v, v), u), jnp.vdot(u, far)

    pairs, size = each(of_one, Pairs(orthonormal(state.v), state.u), config.at_once)
    return pairs, {"objective": jnp.mean(size)}


def dct(
    config: DctConfig,
    model: Model,
    data: Any,
    rule: TokenRule | None = None,
    *,
    run: RunTarget = None,
    place: Place = None,
    log: Log = Log(),
) -> Factors:
    """Decompose what a bias does to a later value (deep causal transcoding).

    Args:
      config: the addresses, the kind and the number of factors.
      model: the model, under surgery or not.
      data: the prompts: labelled tokens, whose labels are not used, or the token ids of each prompt.
      rule: the tokens at which the change is read, for labelled prompts. None: the last `config.where.last`, or all.
      run: where the iterations are saved, as in `training.fit`. Linear factors have none.
      place: a mesh, a function, or None, as in `training.placed`. The prompts are split over its rows.
      log: what is shown and logged.

    Returns:
      The factors, the one with the largest score first.

    Raises:
      UserError: an address is wrong, there are more factors than a value has entries or the projections give, or no
        norm can be calibrated.
    """
    log = log.with_defaults(shown=("objective",), title=f"{config.kind} DCT")
    with placed(place, replicated) as there:
        model = there.frozen(model, rules_for(model))
        prompts = placed_prompts(there, config.where, model, data, rule)
        _check_count(config, prompts)
        keys = jax.random.split(jax.random.key(config.seed), 4)
        radius = config.radius or calibrated_radius(model, prompts, keys[0], ratio=config.ratio, at_once=config.at_once)
        scale = jnp.asarray(radius, jnp.float32)
        if config.kind == "linear" or config.start == "jacobian":
            pairs, _ = _linear(config, model, prompts, keys[1])
            pairs = _filled(pairs, config.factors, keys[2])
        else:
            v, u = (random_on_sphere(key, (config.factors, d), 1.0) for key, d in _widths(prompts, keys[2]))
            pairs = Pairs(orthonormal(v), u)
        if config.kind != "linear":
            frozen = (model, prompts) if config.kind == "quadratic" else (model, prompts, scale)
            step = partial(quadratic_step if config.kind == "quadratic" else exponential_step, config)
            pairs = fit(
                step, there.state(pairs), steps=config.iterations, run=SaveTo.of(run, config), frozen=frozen, log=log
            )
        null = random_on_sphere(keys[3], (config.null, prompts.width), 1.0)
        found = _judged(config, model, prompts, pairs, null, scale)
    weights, scores, changes, of_null, null_changes = map(np.asarray, found)
    v, u = np.asarray(pairs.v), np.asarray(pairs.u)
    where = config.where
    return Factors(
        v, u, weights, scores, changes, of_null, null_changes, float(radius), where.source, where.target
    ).ranked()  # fmt: skip


def _widths(prompts: Prompts, key: Key[Array, ""]) -> list[tuple[Any, int]]:
    first, second = jax.random.split(key)
    return [(first, prompts.width), (second, prompts.clean.shape[-1])]


def _check_count(config: DctConfig, prompts: Prompts) -> None:
    width, out = prompts.width, prompts.clean.shape[-1]
    if config.factors > width:
        raise UserError(f"{config.factors} factors cannot be orthogonal in {width} dimensions")
    if config.kind == "linear" and config.factors > min(config.projections, out):
        raise UserError(
            f"{config.factors} linear factors need as many projections, and a target that is as wide: there are "
            f"{config.projections} projections and {out} entries"
        )


def _filled(pairs: Pairs, factors: int, key: Key[Array, ""]) -> Pairs:
    """The first pairs, and random ones where the projections gave too few."""
    v, u = pairs.v[:factors], pairs.u[:factors]
    if (missing := factors - len(v)) > 0:
        v = jnp.concatenate([v, random_on_sphere(key, (missing, v.shape[1]), 1.0)])
        u = jnp.concatenate([u, random_on_sphere(key, (missing, u.shape[1]), 1.0)])
    return Pairs(orthonormal(v), u)


def _weights(
    config: DctConfig, model: Model, prompts: Prompts, pairs: Pairs, null: Float[Array, "draw d"], radius: Array
) -> tuple[Array, ...]:
    """The weights and the scores of the factors, their changes Δ(R v), and the scores and changes of random vectors."""
    change = partial(mean_change, model, prompts)
    far = lambda rows: each(lambda v: change(radius * v), rows, config.at_once)
    changes, of_null = far(pairs.v), far(null)
    if config.kind == "exponential":
        weights = exponential_weights(pairs, changes)
        scores = weights**2
        null_scores = jnp.sum(of_null**2, axis=1) / math.expm1(1.0) ** 2
    else:
        product = partial(jacobian_times if config.kind == "linear" else hessian_along, change)
        weights = jnp.sum(each(product, pairs.v, config.at_once) * pairs.u, axis=1)
        scores = weights
        null_scores = jnp.sqrt(jnp.sum(each(product, null, config.at_once) ** 2, axis=1))
    return weights, scores, changes, null_scores, of_null


def exponential_weights(pairs: Pairs, changes: Float[Array, "factor d_target"]) -> Float[Array, " factor"]:
    """The α_i for which Σ α_i (exp(v_i · v_j) - 1) (u_i · u_j) = u_j · Δ(R v_j) for all j.

    Args:
      pairs: the directions, of norm 1.
      changes: Δ(R v_j).
    """
    inner = lambda x: jnp.matmul(x, x.T, precision="highest")
    return jnp.linalg.solve(inner(pairs.u) * jnp.expm1(inner(pairs.v)), jnp.sum(pairs.u * changes, axis=1))


_linear = jax.jit(automatic(linear_factors), static_argnums=0)
_judged = jax.jit(automatic(_weights), static_argnums=0)
