"""How bad the worst masks are."""

from __future__ import annotations

from collections.abc import Sequence

import jax.numpy as jnp
from jaxtyping import Array, Float

from jax_interp.decomposition.losses.adversarial import PGDReconstruction
from jax_interp.decomposition.losses.adversary import held
from jax_interp.decomposition.losses.scene import Scene


def pgd_error(scene: Scene, key: Array, attack: PGDReconstruction | None = None) -> Float[Array, ""]:
    """The error under a fresh adversary: 20 steps of 0.1 from random sources shared across the batch, where `attack`
    says nothing else."""
    return (PGDReconstruction() if attack is None else attack)(held(scene), key)


def pgd_curve(
    scene: Scene, key: Array, steps: Sequence[int] = (20, 40, 80, 160, 320), travel: float = 2.0
) -> Float[Array, " count"]:
    """`pgd_error` over numbers of steps, steps times step size held at `travel`. A decomposition that is faithful only
    to the adversary it was trained against comes apart as steps grow."""
    return jnp.stack([pgd_error(scene, key, PGDReconstruction(steps=n, step_size=travel / n)) for n in steps])
