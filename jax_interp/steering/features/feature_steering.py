"""`FeatureSteering`: latents of a dictionary as a `Steering`.

    steering = steer_features(sae, "blocks.2.resid_post", [17], highest[jnp.array([17])])
    edit(model, *steering.edits(2.0))                               add twice the highest observed activation
    steering.using("clamp").edits(10.0)                             set the latent to ten times that
    decoder_vector(sae, "blocks.2.resid_post", [17])                the decoder direction, as a `SteeringVector`

`highest_activations` (activations.py) observes the activations on a text.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any, get_args

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, ArrayLike, Bool, Float, Int, Int32

from jax_interp.core.errors import UserError
from jax_interp.core.pytrees import register_dataclass
from jax_interp.steering.features.feature_edits import How, RememberValue, WriteFeatures, directions_of
from jax_interp.steering.placement import Placement, Tokens, as_placements, placed
from jax_interp.steering.vector import SteeringVector, Strength
from jax_interp.surgery import Dictionary, Edit, at, canonical, is_known
from jax_interp.surgery.address import Address
from jax_interp.surgery.region import Index
from jax_interp.surgery.sparse_coder import SparseCoder, as_sparse_coder
from jax_interp.surgery.taps import static
from jax_interp.surgery.verbs import flat_edits

Features = Int[ArrayLike, " chosen"] | Sequence[int] | int
"""The numbers of one or several latents."""


@register_dataclass
@dataclasses.dataclass(frozen=True, eq=False)
class FeatureSteering:
    """Latents of a dictionary to steer with. `steer_features` makes and checks it.

    Args:
      dictionary: the dictionary.
      features: the latents.
      activation: the activation of each latent at strength 1.
      reads: the address of the value that the dictionary reads.
      writes: the addresses of the values that it writes.
      how: "add", "clamp" or "at_least".
      pos: the positions, as in `at`.
      where: a mask over the tokens, as in `at`.
      tokens: placements; their factors multiply.
    """

    dictionary: Dictionary
    features: Int32[Array, " chosen"]
    activation: Float[Array, " chosen"]
    reads: str = static()
    writes: tuple[str, ...] = static()
    how: How = dataclasses.field(default="add", metadata={"static": True})
    pos: Any = None
    where: Any = None
    tokens: tuple[Placement, ...] = ()

    @property
    def everywhere(self) -> bool:
        """Whether it steers all tokens."""
        return self.pos is None and self.where is None and not self.tokens

    def edits(self, strength: Strength = 1.0) -> tuple[Edit, ...]:
        """The edits of this strength: a number, or one for each row, `[batch, 1]`."""
        n = len(self.writes)
        remembered = None if self.writes == (self.reads,) else f"the value at {self.reads}"
        write = lambda part: WriteFeatures(
            self.dictionary, self.features, self.activation, strength, self.how, remembered, (part, n)
        )
        first = [at(self.reads, RememberValue(remembered))] if remembered and self.how != "add" else []
        written = [at(name, write(i), pos=self.pos, where=self.where) for i, name in enumerate(self.writes)]
        return tuple(flat_edits([*first, *placed(written, self.tokens)]))

    def using(
        self,
        how: How,
        *,
        pos: Index | None = None,
        where: Bool[ArrayLike, "batch pos"] | None = None,
        tokens: Tokens = (),
    ) -> FeatureSteering:
        """The same latents with another operation, or at some tokens.

        Args:
          how: "add", "clamp" or "at_least".
          pos: the positions, as in `at`.
          where: a mask over the tokens, as in `at`.
          tokens: placements of `steering.applying`, such as `generated()`: one, or several, whose factors multiply. A
            factor between 0 and 1 moves the value this part of the way.

        Raises:
          UserError: there is no such operation, or it does not work with this dictionary.
        """
        _check_how(how, len(self.writes))
        return dataclasses.replace(self, how=how, pos=pos, where=where, tokens=as_placements(tokens))


def steer_features(
    dictionary: Dictionary,
    address: str,
    features: Features,
    activation: Float[ArrayLike, "..."] | float = 1.0,
    how: How = "add",
    *,
    writes: str | Sequence[str] | None = None,
) -> FeatureSteering:
    """Steer with one or several latents of a dictionary. Strength 1 is the given activation of each latent.

    With "add", strength 0 changes nothing. With "clamp", strength 0 sets the latents to 0. With both, a token whose
    latents do not change keeps its bits. A latent of a TopK dictionary that is not among the k largest counts as 0, and
    setting it turns off no other latent. Several latents are changed together: the activations are those of the value
    before this steering.

    Args:
      dictionary: an SAE, a transcoder or a crosscoder; any object with `encode`, `decode` and fixed directions.
      address: the address of the value that the dictionary reads.
      features: the latents, each once.
      activation: the activation at strength 1, such as the highest activation on a text: one number, or one for each.
      how: "add" what the latents write, "clamp" them, or raise them where they are less ("at_least").
      writes: the address that the dictionary writes, or for a crosscoder the addresses in the order of its parts. None:
        it writes the value that it reads.

    Raises:
      UserError: the dictionary has no fixed directions, a latent does not exist or is given twice, an activation is not
        finite, an address names several layers, or `how` does not work with this dictionary.

    Example:
        highest = highest_activations(model, address, sae, batches)
        steering = steer_features(sae, address, [17, 40], highest[jnp.array([17, 40])], "clamp")
        edit(model, *steering.edits(4.0))
    """
    chosen = checked_features(dictionary, features)
    reads = _single(address)
    written = (reads,) if writes is None else tuple(map(_single, (writes,) if isinstance(writes, str) else writes))
    _check_how(how, len(written))
    _check_parts(dictionary, len(written))
    if written == (reads,) and not as_sparse_coder(dictionary).is_autoencoder():
        raise UserError("this dictionary writes another value than it reads: give writes= its address")
    return FeatureSteering(dictionary, chosen, _checked_activation(activation, chosen), reads, written, how)


def some_features(steering: FeatureSteering, index: Int[ArrayLike, " chosen"] | Sequence[int]) -> FeatureSteering:
    """The steering with some of its latents, by their place in it."""
    index = jnp.asarray(index, jnp.int32)
    return dataclasses.replace(steering, features=steering.features[index], activation=steering.activation[index])


def one_feature(steering: FeatureSteering, feature: Int32[Array, ""], activation: Float[Array, ""]) -> FeatureSteering:
    """The steering with one latent alone, which may be traced."""
    return dataclasses.replace(steering, features=feature[None], activation=activation[None])


def decoder_vector(
    dictionary: Dictionary,
    address: str,
    features: Features,
    activation: Float[ArrayLike, "..."] | float = 1.0,
) -> SteeringVector:
    """The decoder direction of a latent times an activation, or the sum for several latents, as a steering vector.

    Args:
      dictionary: the dictionary.
      address: the address of the value that the dictionary writes.
      features: the latents.
      activation: the activation of each latent, or one number.

    Raises:
      UserError: a latent does not exist, or the length of what it writes depends on the input of the dictionary
        (`Normalised`), so that no vector is right for all tokens; use `steer_features`.
    """
    chosen = checked_features(dictionary, features)
    _check_parts(dictionary, 1)
    written = as_sparse_coder(dictionary).written(None, chosen, _checked_activation(activation, chosen))
    return SteeringVector({_single(address): written})


def checked_features(dictionary: Dictionary, features: Features) -> Int32[Array, " chosen"]:
    """The numbers of latents as an array.

    Raises:
      UserError: they are known and are not distinct latents, or the dictionary has no fixed directions.
    """
    directions = directions_of(as_sparse_coder(dictionary))
    chosen = jnp.atleast_1d(jnp.asarray(features))
    if chosen.ndim != 1 or not chosen.size or not jnp.issubdtype(chosen.dtype, jnp.integer):
        raise UserError(f"features are the numbers of one or several latents, got {features!r}")
    if is_known(chosen):
        numbers, n = np.asarray(chosen), directions.shape[0]
        if (numbers < 0).any() or (numbers >= n).any():
            raise UserError(f"features {numbers.tolist()}: the dictionary has the latents 0 to {n - 1}")
        if len(np.unique(numbers)) < len(numbers):
            raise UserError(f"features {numbers.tolist()}: a latent is there twice")
    coder = as_sparse_coder(dictionary)
    if coder is not dictionary and all(map(is_known, (chosen, directions))):
        _check_decoder(coder, directions, chosen[:4])
    return chosen.astype(jnp.int32)


def _check_decoder(coder: SparseCoder, directions: Float[Array, "feature d"], some: Int[Array, " some"]) -> None:
    """Raise UserError if `W_dec` of a foreign dictionary does not say what its latents write."""
    one = jnp.zeros((len(some), len(directions)), directions.dtype).at[jnp.arange(len(some)), some].set(1)
    written = coder.decode(one) - coder.decode(jnp.zeros_like(one))
    if written.shape[-1] != directions.shape[-1] or not np.allclose(written, directions[some], rtol=1e-2, atol=1e-4):
        raise UserError(
            "decode of this dictionary is not z @ W_dec + b, so W_dec does not say what a latent writes: derive the "
            "class from jax_interp.surgery.sparse_coder.SparseCoder, and define `directions` and `written`"
        )


def _checked_activation(activation: Any, chosen: Int32[Array, " chosen"]) -> Float[Array, " chosen"]:
    each = jnp.asarray(activation, jnp.float32)
    if each.shape not in ((), chosen.shape):
        raise UserError(
            f"activation has shape {list(each.shape)} for {len(chosen)} latents: one number, or one for each"
        )
    if is_known(each) and not np.isfinite(np.asarray(each)).all():
        raise UserError(f"the activations of the latents must be finite, got {np.asarray(each).tolist()}")
    return jnp.broadcast_to(each, chosen.shape)


def _check_how(how: str, n_written: int) -> None:
    if how not in get_args(How):
        raise UserError(f"how={how!r}: there are {', '.join(get_args(How))}")
    if how != "add" and n_written > 1:
        raise UserError(
            f"{how!r} needs the latents, and a crosscoder reads values that are made after the first steered value: "
            "use 'add'"
        )


def _check_parts(dictionary: Dictionary, n_written: int) -> None:
    sites = getattr(dictionary, "write_sites", 1)
    if sites != n_written:
        raise UserError(
            f"this dictionary writes {sites} values, side by side, and got {n_written} addresses to write: "
            "steer_features takes writes=[one address for each]"
        )


def _single(address: str) -> str:
    """The address as it is written in messages. Raises UserError if it names several layers."""
    if not Address.parse(address).is_single:
        raise UserError(f"{address!r} names several layers: give each layer its own steering")
    return canonical(address)
