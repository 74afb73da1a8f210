"""A world as a model, so that everything that trains or reads a dictionary on a model does so on a world.

    model, batch_at = as_model(world, jax.random.key(0))
    sae = train_dictionary(variants.topk("x", k=3, n_features=64, steps=1000), model, batch_at)
    score(sae, world, jax.random.key(1))

Token number t stands for row number t of the world: the same row in every run, drawn on the device when it is read.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int, Key

from jax_interp.core.errors import UserError
from jax_interp.surgery import Site
from jax_interp.toys.synthetic.world import World


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class WorldModel:
    """tokens [seq, pos] -> x [seq, pos, d], whose values are named `sites`: one, or equal parts of x side by side (the
    two models of `two_models`)."""

    world: World
    key: Key[Array, ""]
    sites: tuple[str, ...] = dataclasses.field(default=("x",), metadata={"static": True})

    def __call__(self, tokens: Int[Array, "seq pos"], *, taps=()) -> Float[Array, "seq pos d"]:
        site = Site.open(taps)
        draw = lambda number: self.world.sample(jax.random.fold_in(self.key, number), 1)[0][0]
        x = jax.vmap(draw)(tokens.reshape(-1)).reshape(*tokens.shape, -1)
        parts = [site(name, part) for name, part in zip(self.sites, jnp.split(x, len(self.sites), axis=-1))]
        return site.close(jnp.concatenate(parts, axis=-1))


def as_model(
    world: World, key: Key[Array, ""], sites: tuple[str, ...] = ("x",), batch: int = 1024
) -> tuple[WorldModel, Callable[[int], tuple[Int[Array, "1 pos"], Bool[Array, "1 pos"]]]]:
    """(model, batch_at): batch i has rows i·batch to (i + 1)·batch - 1. UserError where x has no such equal parts."""
    d = world.directions.shape[1]
    if d % len(sites):
        raise UserError(f"{len(sites)} values of equal width do not fit into a world of {d} dimensions")

    def batch_at(i: int) -> tuple[Array, Array]:
        return (i * batch + jnp.arange(batch, dtype=jnp.int32))[None], jnp.ones((1, batch), bool)

    return WorldModel(world, key, sites), batch_at
