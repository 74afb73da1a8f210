"""Score functions for every form of dictionary: which latents are its units, and what they read.

A `Dictionary` has `features.Latents`. This file has those of the other forms: cross-layer dictionaries, temporal ones,
which read whole sequences, and ones that normalise their input.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from jax_interp.core.pytrees import register_dataclass
from jax_interp.dashboards.collector import ScoreFunction
from jax_interp.dashboards.features import Latents
from jax_interp.data.harvest import harvest, values
from jax_interp.dictionaries.forms import Dictionary, Normalised, Temporal
from jax_interp.dictionaries.forms.cross_layer import CrossLayer
from jax_interp.dictionaries.storage import AnyDictionary
from jax_interp.surgery.contract import Model


def scores_of(dictionary: AnyDictionary, address: str | Sequence[str]) -> ScoreFunction:
    """The score function of all latents of a dictionary of any form.

    Args:
      dictionary: the dictionary.
      address: the address that it reads, or several.
    """
    addresses = (address,) if isinstance(address, str) else tuple(address)
    if isinstance(dictionary, CrossLayer):
        return CrossLayerLatents(dictionary, addresses)
    if isinstance(dictionary, Temporal):
        return SequenceLatents(dictionary, addresses[0])
    return Latents(with_directions(dictionary), None, address if isinstance(address, str) else addresses)


def count(dictionary: AnyDictionary) -> int:
    """The number of all latents."""
    sources = len(dictionary.sources) if isinstance(dictionary, CrossLayer) else 1
    return sources * dictionary.n_features


@register_dataclass
@dataclasses.dataclass(frozen=True)
class CrossLayerLatents:
    """The latents of a cross-layer dictionary. Unit `source * n_features + i` is latent i of a source.

    Args:
      dictionary: the dictionary.
      addresses: the addresses that its sources read, in their order.
    """

    dictionary: CrossLayer
    addresses: tuple[str, ...] = dataclasses.field(metadata={"static": True})

    def __call__(self, model: Model, tokens: Int[Array, "seq pos"]) -> Float[Array, "row unit"]:
        latents = self.dictionary.encode(jnp.stack(values(model, self.addresses, tokens)))
        return jnp.moveaxis(latents, 0, 1).reshape(latents.shape[1], -1)


def latent_names(dictionary: CrossLayer, addresses: str | Sequence[str]) -> dict[int, str]:
    """The name of each unit of `CrossLayerLatents`: the address that its source reads, and its index there."""
    listed = (addresses,) if isinstance(addresses, str) else addresses
    each = dictionary.n_features
    return {source * each + i: f"{address} {i}" for source, address in enumerate(listed) for i in range(each)}


@register_dataclass
@dataclasses.dataclass(frozen=True)
class SequenceLatents:
    """The latents of a dictionary that reads whole sequences.

    Args:
      dictionary: the dictionary.
      address: the address that it reads.
    """

    dictionary: Temporal
    address: str = dataclasses.field(metadata={"static": True})

    def __call__(self, model: Model, tokens: Int[Array, "seq pos"]) -> Float[Array, "row unit"]:
        rows = harvest(model, self.address, tokens)
        latents = self.dictionary.encode(rows.reshape(*tokens.shape, rows.shape[-1]))
        return latents.reshape(tokens.size, -1)


@register_dataclass
@dataclasses.dataclass(frozen=True)
class WithDirections:
    """A dictionary that normalises its input, with decoder directions as `W_dec`."""

    dictionary: Normalised

    @property
    def W_dec(self) -> Float[Array, "feature d"]:
        return self.dictionary.directions()

    def encode(self, x: Float[Array, "row d"]) -> Float[Array, "row feature"]:
        """The latents of `x`."""
        return self.dictionary.encode(x)


def with_directions(dictionary: Dictionary | Normalised) -> Dictionary | WithDirections:
    """The dictionary, so that it has a `W_dec`."""
    return WithDirections(dictionary) if isinstance(dictionary, Normalised) else dictionary
