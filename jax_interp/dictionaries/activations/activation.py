"""The base class of activations: how a dictionary decides which latents are on, and how strongly.

A new activation is one file of this folder (or of your own):

    @ACTIVATIONS.register
    @jax.tree_util.register_dataclass
    @dataclasses.dataclass(frozen=True)
    class Squared(ElementwiseActivation):
        def decide(self, dictionary, code):
            return code.with_values(jax.nn.relu(code.pre) ** 2)

A config names an activation, and `init` makes from it what the dictionary holds. Where nothing is learnt, both are the
same object. Where something is learnt, they may be two classes: `JumpReLU` in the config, `Jump` in the dictionary.
"""

from __future__ import annotations

import dataclasses
from typing import TYPE_CHECKING, Any, ClassVar, Self

import jax
import jax.numpy as jnp
from jax.typing import DTypeLike
from jaxtyping import Array, Bool, Float

from jax_interp.core.errors import UserError
from jax_interp.core.registry import Registry
from jax_interp.dictionaries.activations.pre import PreCode, dense_pre
from jax_interp.dictionaries.codes import Code, DenseCode

if TYPE_CHECKING:
    from jax_interp.dictionaries.forms.dictionary import Dictionary


class Activation:
    """Base class of activations. Subclasses are frozen dataclasses and pytrees; what they learn is their leaves.

    A subclass defines `encode`, or derives from `ElementwiseActivation` and defines `decide`. Every other member has a
    default.
    """

    if TYPE_CHECKING:  # every subclass is a dataclass
        __dataclass_fields__: ClassVar[dict[str, dataclasses.Field[Any]]]

    k: int | None = None
    """How many latents of a row are on, at most or on average. None: each latent decides for itself."""
    limit: Float[Array, ""] | None = None
    """Where `supports_limit`: a number up to k, perhaps traced, that takes the place of k."""
    weighted: bool = False
    """Whether latents are compared by pre-activation times the norm of their decoder row."""
    elementwise: ClassVar[bool] = False
    """Whether each latent is decided from its own pre-activation. Losses on pre-activations need this."""
    uses_encoder: ClassVar[bool] = True
    """Whether `W_enc` and `b_enc` take part. False: the decoder encodes, and its rows must have norm 1."""
    cross_layer: ClassVar[bool] = False
    """Whether a cross-layer dictionary can be trained with it."""
    trains_thresholds: ClassVar[bool] = False
    """Whether the dictionary's activation has `threshold` [feature] and `bandwidth`, for losses that train them."""
    trains_gate: ClassVar[bool] = False
    """Whether pre-activations are those of a gate, for losses that train it."""
    supports_limit: ClassVar[bool] = False
    """Whether `limit` is one of its fields: a sweep over k is then one program."""
    per_feature: ClassVar[tuple[str, ...]] = ()
    """Fields that hold one number for each feature. They are sharded and resampled with the features."""

    @classmethod
    def trained_class(cls) -> type[Activation]:
        """The class that `init` returns: what the dictionary holds and what is saved."""
        return cls

    def init(self, n_features: int, dtype: DTypeLike) -> Activation:
        """What a fresh dictionary of `n_features` holds. Raises UserError where the settings do not fit it."""
        return self

    def encode(self, dictionary: Dictionary, x: Float[Array, "row d"]) -> Code:
        """The code of inference, in the cheapest form."""
        raise NotImplementedError(f"{type(self).__name__} has no encode")

    def encode_batch(self, dictionary: Dictionary, x: Float[Array, "row d"]) -> Code:
        """The code that is trained on. Only where rows of a batch compete it is another one than `encode`'s."""
        return self.encode(dictionary, x)

    def observe(self, dictionary: Dictionary, code: Code) -> Activation | None:
        """The activation after a training step with this `code`. None: only the gradient changes it."""
        return None

    def scaled(self, factor: Float[Array, "..."]) -> Self:
        """The activation a' with a'(factor · pre) = factor · a(pre). `factor` is one number, or one a feature."""
        return self

    def shifted(self, shift: Float[Array, " feature"]) -> Self:
        """The activation for a dictionary whose encoder product is higher by `shift` and whose `b_enc` is lower by it.
        Pre-activations are the same, so that only an activation with a bias of its own changes."""
        return self

    def with_unit_rows(self, norms: Float[Array, " feature"]) -> Self:
        """The activation after decoder rows were divided by their `norms` and the encoder was multiplied by them."""
        return self.scaled(norms)

    def with_k(self, k: int) -> Self:
        """The activation with another `k`. Itself where it has none."""
        return self

    def widened(self, factor: int, n_features: int, dtype: DTypeLike) -> Self:
        """The activation with `factor` times as many latents a row, for `MultiTopK`."""
        raise UserError(f"MultiTopK needs an activation with a k, not {type(self).__name__}")

    def warm_start(self, given: Dictionary, address: object) -> Activation | None:
        """The activation that training goes on from, where `self` is a fresh one.

        Args:
          given: the trained dictionary to go on from.
          address: what it is for, for the message of an error.

        Returns:
          An activation with the parameters of `given.activation` and the settings of `self`. None: `given.activation`
          is of another kind.
        """
        if type(given.activation) is not type(self):
            return None
        return jax.tree.unflatten(jax.tree.structure(self), jax.tree.leaves(given.activation))

    def for_inference(self, dictionary: Dictionary) -> Dictionary:
        """The dictionary that is exported after training; the same function at inference."""
        return dictionary

    def as_jumprelu(self, dictionary: Dictionary) -> Dictionary:
        """The JumpReLU dictionary that is the same function at inference. Raises UserError where there is none."""
        raise UserError(f"a {type(self).__name__} dictionary is no JumpReLU dictionary: BatchTopK and Gated ones are")


ACTIVATIONS = Registry("activation", Activation)


class ElementwiseActivation(Activation):
    """An activation that decides each latent from its own pre-activation (ReLU, JumpReLU, Gated).

    A subclass defines `decide`. A training step can then compute with those latents alone that `takes_part` names.
    """

    elementwise = True

    def encode(self, dictionary: Dictionary, x: Float[Array, "row d"]) -> DenseCode:
        return self.decide(dictionary, dense_pre(dictionary, x))

    def decide(self, dictionary: Dictionary, code: PreCode) -> PreCode:
        """`code` with the values that its pre-activations give."""
        raise NotImplementedError(f"{type(self).__name__} has no decide")

    def takes_part(self, dictionary: Dictionary, pre: Float[Array, "row feature"]) -> Bool[Array, "row feature"]:
        """The pre-activations that a loss or its gradient can depend on: all that are on, and perhaps others."""
        return pre > 0


class SelectiveActivation(Activation):
    """An activation that chooses latents by comparison; its field `k` says how many (TopK, GroupMax, BatchTopK)."""

    k: int

    def init(self, n_features: int, dtype: DTypeLike) -> Activation:
        if not 0 < self.k <= n_features:
            raise UserError(f"k={self.k} latents of n_features={n_features}: k must be from 1 to n_features")
        return self

    def with_k(self, k: int) -> Self:
        limit = {"limit": None} if self.supports_limit else {}
        return dataclasses.replace(self, k=k, **limit)

    def widened(self, factor: int, n_features: int, dtype: DTypeLike) -> Self:
        k = min(factor * self.k, n_features)
        changed = {} if self.limit is None else {"limit": jnp.minimum(factor * self.limit, k)}
        wider = dataclasses.replace(self, k=k, **changed)
        wider.init(n_features, dtype)  # raises where this k does not fit
        return wider
