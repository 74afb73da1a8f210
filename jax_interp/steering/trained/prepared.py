"""What a run needs before its first step and after its last: starts, reference likelihoods, and largest latents."""

from __future__ import annotations

import warnings
from collections.abc import Iterator, Mapping, Sequence
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, UInt32

from jax_interp.core.errors import UserError
from jax_interp.core.processes import to_host
from jax_interp.steering.trained.batches import ConceptTexts
from jax_interp.steering.trained.completions import Texts
from jax_interp.steering.trained.config import Member, TrainedSteeringConfig, with_layer
from jax_interp.steering.trained.intervention import Intervention
from jax_interp.steering.trained.likelihood import likelihood
from jax_interp.surgery import Model, values_at
from jax_interp.surgery.value_tokens import wide
from jax_interp.training import automatic
from jax_interp.training.placement import Placement


def started(
    config: TrainedSteeringConfig, members: Sequence[Member], model: Model, texts: Mapping[str, ConceptTexts]
) -> tuple[Intervention, ...]:
    """The new interventions, one for each address, with a leading axis over the members.

    The start of a member depends on its seed only.

    Raises:
      UserError: a value is not `[batch, pos, d]`.
    """
    some = jax.tree.map(lambda array: jnp.asarray(array[:1]), next(iter(texts.values())).wanted)
    seeds = jnp.asarray([member.seed for member in members], jnp.uint32)
    widths = []
    for address in config.addresses:
        name = with_layer(address, members[0].layer)
        shape = jax.eval_shape(lambda t, name=name: values_at(model, name)(t.tokens, mask=t.mask)[name], some).shape
        if len(shape) != 3:
            raise UserError(f"{name} has shape {shape}: an intervention changes one vector per token, [batch, pos, d]")
        widths.append(shape[-1])
    return _drawn(config, tuple(widths), seeds)


@partial(jax.jit, static_argnums=(0, 1))
def _drawn(
    config: TrainedSteeringConfig, widths: tuple[int, ...], seeds: UInt32[Array, " member"]
) -> tuple[Intervention, ...]:
    def of_seed(seed: UInt32[Array, ""]) -> tuple[Intervention, ...]:
        keys = [jax.random.fold_in(jax.random.key(seed), number) for number in range(len(widths))]
        return tuple(config.intervention.init(key, d) for key, d in zip(keys, widths, strict=True))

    return jax.vmap(of_seed)(seeds)


@jax.jit
@automatic
def _log_p(model: Model, texts: Texts) -> Float[Array, " row"]:
    return likelihood(model, texts).log_p


def reference(
    config: TrainedSteeringConfig, model: Model, texts: ConceptTexts, there: Placement
) -> Float[np.ndarray, "row 2"] | None:
    """log p of both completions of each pair, without steering. None if there are no pairs."""
    if texts.plain is None:
        return None
    found = [to_host(_log_p(model, part)) for part in _parts(texts.plain, config.batch, there)]
    both = np.concatenate(found)[: 2 * len(texts)].astype(np.float32)
    return both.reshape(2, -1).T


def _parts(texts: Texts, size: int, there: Placement) -> Iterator[Texts]:
    """The texts in parts of `size` rows. The last part is filled up with its first rows."""
    rows = np.arange(-(-len(texts.tokens) // size) * size) % len(texts.tokens)
    part = there.batches(lambda number: texts.take(rows[number * size : (number + 1) * size]))
    return (part(number) for number in range(len(rows) // size))


def calibrated(
    config: TrainedSteeringConfig,
    members: Sequence[Member],
    model: Model,
    texts: Mapping[str, ConceptTexts],
    interventions: tuple[Intervention, ...],
    there: Placement,
) -> tuple[Intervention, ...]:
    """The interventions with the largest latent of each detector on its texts. Others are returned as they are."""
    found = []
    for address, intervention in zip(config.addresses, interventions, strict=True):
        if not intervention.detects:
            found.append(intervention)
            continue
        largest = np.zeros(len(members), np.float32)
        for name in texts:
            own = [i for i, member in enumerate(members) if member.concept == name]
            by_layer = {with_layer(address, members[i].layer): [] for i in own}
            for i in own:
                by_layer[with_layer(address, members[i].layer)].append(i)
            for part in _parts(texts[name].wanted, config.batch, there):
                for site, places in by_layer.items():
                    some = jax.tree.map(lambda leaf, places=places: leaf[np.asarray(places)], intervention)
                    largest[places] = np.maximum(largest[places], to_host(_largest(site, some, model, part)))
        if (dead := np.flatnonzero(largest == 0)).size:
            warnings.warn(
                f"{dead.size} detectors fire on none of their texts, the first is that of {members[dead[0]]}: their "
                "steering changes nothing",
                stacklevel=3,
            )
        found.append(jax.vmap(lambda one, most: one.calibrated(most))(intervention, jnp.asarray(largest)))
    return tuple(found)


@partial(jax.jit, static_argnums=0)
@automatic
def _largest(site: str, interventions: Intervention, model: Model, texts: Texts) -> Float[Array, " member"]:
    x = wide(values_at(model, site)(texts.tokens, mask=texts.mask)[site])

    def of_one(intervention: Intervention) -> Float[Array, ""]:
        latents = intervention.latents(x)
        assert latents is not None
        return jnp.max(jnp.where(texts.changed, latents, jnp.zeros_like(latents))).astype(jnp.float32)

    return jax.vmap(of_one)(interventions)
