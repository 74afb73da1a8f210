"""LoRA adapters for defences: thin matrices beside the linear maps of some layers (Hu et al. 2021)."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Key

from jax_interp.core.errors import UserError
from jax_interp.surgery import Address, Model, canonical, depth_of
from jax_interp.surgery.lora import LoRA, LowRank
from jax_interp.surgery.select import join, replace, replace_each, split


@dataclasses.dataclass(frozen=True)
class Adapters:
    """Which linear maps are adapted, and how. A new adapter changes nothing.

    `a` is drawn from a normal distribution with variance 1 / d_in and `b` is zero, as in `surgery.lora`; PEFT draws `a`
    from a uniform distribution. There is no dropout.
    """

    parts: tuple[str, ...] = ("attn.q", "attn.k", "attn.v", "attn.o", "mlp.up", "mlp.down")
    """The linear maps of a block."""
    layers: tuple[int, ...] | None = None
    """The blocks whose adapters are trained. None: all. The adapters of other blocks stay zero."""
    rank: int = 16
    alpha: float = 16.0
    """The product of the two matrices is multiplied by alpha / rank."""

    def __post_init__(self) -> None:
        if not self.parts or self.rank < 1 or not self.alpha > 0:
            raise UserError(f"adapters need parts, a rank of at least 1 and alpha above 0: {self}")
        if self.layers is not None and not self.layers:
            raise UserError("layers=() leaves nothing to train: name layers, or None for all")

    def into(self, model: Model, key: Key[Array, ""]) -> Any:
        """The model with new adapters in every block. It computes the same function."""
        depth, adapted = depth_of(model), model
        if bad := [layer for layer in self.layers or () if not 0 <= layer < depth]:
            raise UserError(f"there is no layer {bad[0]}: the model has the layers 0 to {depth - 1}")
        add: Callable[..., LoRA] = lambda linear, key: LoRA(linear, key, rank=self.rank, alpha=self.alpha)
        for number, part in enumerate(self.parts):
            keys = jax.random.split(jax.random.fold_in(key, number), depth)
            adapted = replace_each(adapted, f"blocks.*.{part}", add, keys)  # type: ignore[type-var]
        return adapted

    def joined(self, trained: Any, rest: Any) -> Any:
        """The model of the trained and the other parts. The gradient of layers that are not trained is zero."""
        model = join(trained, rest)
        if self.layers is None:
            return model
        chosen = jnp.isin(jnp.arange(depth_of(model)), jnp.asarray(self.layers))
        for part in self.parts:
            model = replace_each(model, f"blocks.*.{part}.low_rank", _without_gradient_unless, chosen)
        return model


ADAPTERS = Adapters()
"""Rank 16 in all linear maps of attention and MLP."""


def _without_gradient_unless(low_rank: LowRank, chosen: Bool[Array, ""]) -> LowRank:
    return jax.tree.map(lambda leaf: jnp.where(chosen, leaf, jax.lax.stop_gradient(leaf)), low_rank)


def split_adapters(model: Any) -> tuple[Any, Any]:
    """`(adapters, rest)`, as two pytrees that `Adapters.joined` puts together."""
    return split(model, LowRank)


def moved(adapters: Any, std: float, key: Key[Array, ""]) -> Any:
    """Adapters with normal noise added to every entry of both matrices."""
    leaves, structure = jax.tree.flatten(adapters)
    keys = jax.random.split(key, len(leaves))
    noise = [std * jax.random.normal(k, leaf.shape) for k, leaf in zip(keys, leaves)]
    return jax.tree.unflatten(structure, [leaf + x.astype(leaf.dtype) for leaf, x in zip(leaves, noise)])


def merged(model: Any) -> Any:
    """The model with every adapter added to its weight. It computes the same function, up to rounding."""
    return replace(model, LoRA, LoRA.merged)


def layers_up_to(site: str, depth: int) -> tuple[int, ...]:
    """The layers from the first one to the layer of an address. All layers for a value after the blocks.

    Raises:
      UserError: the address has several layers.
    """
    address = Address.parse(canonical(site))
    if not address.is_single:
        raise UserError(f"{site!r} has several layers: an alarm reads one value")
    layers = address.resolve(depth)
    return tuple(range(depth if layers is None else layers[0] + 1))
