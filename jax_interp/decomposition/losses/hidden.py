"""Hidden-activation reconstruction: under masks, every decomposed matrix puts out what it does in the target."""

from __future__ import annotations

import dataclasses
from typing import Any, Literal

import jax.numpy as jnp
from jaxtyping import Array, Float

from jax_interp.core.errors import UserError
from jax_interp.core.layer import upcast
from jax_interp.core.objectives import mean_squared_error
from jax_interp.decomposition.importance.inputs import PerMatrix
from jax_interp.decomposition.losses.scene import Scene
from jax_interp.decomposition.masks import Masks, given, stochastic
from jax_interp.decomposition.matrices import row_axes


def hidden_errors(scene: Scene, masks: Masks, relative: bool = False) -> dict[str, Float[Array, "*layer"]]:
    """For each matrix the mean square of what its output is off by, or that over the target's mean square."""
    if scene.hidden is None:
        raise UserError("the scene has no hidden activations: read_inputs(..., outputs=True) makes them")
    acts = scene.masked(masks, *(f"{name}.output" for name in scene.hidden))
    return {name: _error(target, acts[f"{name}.output"], name, relative) for name, target in scene.hidden.items()}


def _error(target: Array, value: Array, name: str, relative: bool) -> Float[Array, "*layer"]:
    axes = (*row_axes(name, target), -1)
    error = mean_squared_error(target, value, axes)
    return error / jnp.mean(upcast(target) ** 2, axis=axes) if relative else error


@dataclasses.dataclass(frozen=True)
class HiddenReconstruction:
    """The mean over matrices, under stochastic or importance masks."""

    coefficient: float = 1.0
    masks: Literal["stochastic", "importance"] = "stochastic"
    relative: bool = False

    def __call__(self, scene: Scene, key: Array, sources: Any = None) -> Float[Array, ""]:
        lower: PerMatrix = scene.importance.lower
        if self.masks == "stochastic":
            masks = stochastic(key, lower, delta=scene.delta, sampling=scene.sampling)
        else:
            masks = given(lower)
        errors = hidden_errors(scene, masks, self.relative)
        return jnp.mean(jnp.concatenate([jnp.atleast_1d(error) for error in errors.values()]))
