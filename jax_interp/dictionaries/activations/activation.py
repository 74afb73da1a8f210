"""The base class of activations: how a dictionary decides which latents are on, and how strongly.

A new activation is one file in this folder, or a file of your own:

    @ACTIVATIONS.register
    @register_dataclass
    @dataclasses.dataclass(frozen=True)
    class Squared(ElementwiseActivation):
        def decide(self, dictionary, code):
            return code.with_values(jax.nn.relu(code.pre) ** 2)

A config has an activation, and `init` turns it into the activation that the dictionary holds. If the activation has no
parameters, both are the same object. If it has parameters, they may be two classes, such as `JumpReLU` in the config
and `Jump` in the dictionary.
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
    """Base class of activations. Subclasses are frozen dataclasses and pytrees; their parameters are the leaves.

    A subclass defines `encode`, or it derives from `ElementwiseActivation` and defines `decide`. All other members have
    defaults.
    """

    if TYPE_CHECKING:  # every subclass is a dataclass
        __dataclass_fields__: ClassVar[dict[str, dataclasses.Field[Any]]]

    k: int | None = None
    """The number of latents on per row, at most or on average. None: latents are independent."""
    limit: Float[Array, ""] | None = None
    """If `supports_limit`: a number up to k that is used instead of k. It may be traced."""
    weighted: bool = False
    """Whether latents are compared by their pre-activation times the norm of their decoder row."""
    elementwise: ClassVar[bool] = False
    """Whether each latent depends only on its own pre-activation. Losses on pre-activations need this."""
    uses_encoder: ClassVar[bool] = True
    """Whether `W_enc` and `b_enc` are used. False: the decoder is also the encoder, and its rows must have norm 1."""
    signed: ClassVar[bool] = False
    """Whether latents can be negative. Losses that are meant for latents of at least 0 refuse such an activation."""
    cross_layer: ClassVar[bool] = False
    """Whether a cross-layer dictionary can be trained with it."""
    trains_thresholds: ClassVar[bool] = False
    """Whether the activation that the dictionary holds has `threshold` [feature] and `bandwidth`. Some losses train
    thresholds."""
    trains_gate: ClassVar[bool] = False
    """Whether pre-activations belong to a gate. Some losses train the gate."""
    supports_limit: ClassVar[bool] = False
    """Whether the activation has a field `limit`. A sweep over k is then one compiled program."""
    per_feature: ClassVar[tuple[str, ...]] = ()
    """Names of the fields that hold one number per feature. They are sharded and resampled with the features."""

    @classmethod
    def trained_class(cls) -> type[Activation]:
        """The class that `init` returns. The dictionary holds an object of this class, and files store it."""
        return cls

    def init(self, n_features: int, dtype: DTypeLike) -> Activation:
        """The activation of a new dictionary of `n_features`. Raises UserError if the settings do not fit."""
        return self

    def encode(self, dictionary: Dictionary, x: Float[Array, "row d"]) -> Code:
        """The code at inference, in the cheapest form."""
        raise NotImplementedError(f"{type(self).__name__} has no encode")

    def encode_batch(self, dictionary: Dictionary, x: Float[Array, "row d"]) -> Code:
        """The code in training. It differs from that of `encode` only if the rows of a batch compete (BatchTopK)."""
        return self.encode(dictionary, x)

    def observe(self, dictionary: Dictionary, code: Code) -> Activation | None:
        """The activation after a training step that used `code`. None: only the gradient changes the activation."""
        return None

    def scaled(self, factor: Float[Array, "..."]) -> Self:
        """The activation a' with a'(factor · pre) = factor · a(pre). `factor` is one number, or one per feature."""
        return self

    def shifted(self, shift: Float[Array, " feature"]) -> Self:
        """The activation after `shift` was added to the encoder product `x W_enc` and subtracted from `b_enc`.
        Pre-activations stay the same, so only an activation with a bias of its own changes."""
        return self

    def with_unit_rows(self, norms: Float[Array, " feature"]) -> Self:
        """The activation after decoder rows were divided by their `norms` and the encoder was multiplied by them."""
        return self.scaled(norms)

    def with_k(self, k: int) -> Self:
        """The activation with another `k`. Without a `k`, the activation itself."""
        return self

    def widened(self, factor: int, n_features: int, dtype: DTypeLike) -> Self:
        """The activation with `factor` times as many latents per row. `MultiTopK` uses it."""
        raise UserError(f"MultiTopK needs an activation with a k, not {type(self).__name__}")

    def warm_start(self, given: Dictionary, address: object) -> Activation | None:
        """The activation to start from when training continues from another dictionary. `self` is a new activation.

        Args:
          given: the trained dictionary to continue from.
          address: the address of the dictionary, for error messages.

        Returns:
          An activation with the parameters of `given.activation` and the settings of `self`. None if
          `given.activation` has another class.
        """
        if type(given.activation) is not type(self):
            return None
        return jax.tree.unflatten(jax.tree.structure(self), jax.tree.leaves(given.activation))

    def for_inference(self, dictionary: Dictionary) -> Dictionary:
        """The dictionary that is exported after training. At inference it computes the same function."""
        return dictionary

    def as_jumprelu(self, dictionary: Dictionary) -> Dictionary:
        """The JumpReLU dictionary that computes the same function at inference. Raises UserError if there is none."""
        raise UserError(
            f"a {type(self).__name__} dictionary cannot be written as a JumpReLU dictionary; BatchTopK and Gated can"
        )


ACTIVATIONS = Registry("activation", Activation)


class ElementwiseActivation(Activation):
    """An activation that computes each latent from its own pre-activation (ReLU, JumpReLU, Gated).

    A subclass defines `decide`. A training step may then leave out all latents for which `takes_part` is False.
    """

    elementwise = True

    def encode(self, dictionary: Dictionary, x: Float[Array, "row d"]) -> DenseCode:
        return self.decide(dictionary, dense_pre(dictionary, x))

    def decide(self, dictionary: Dictionary, code: PreCode) -> PreCode:
        """Return `code` with its values computed from its pre-activations."""
        raise NotImplementedError(f"{type(self).__name__} has no decide")

    def takes_part(self, dictionary: Dictionary, pre: Float[Array, "row feature"]) -> Bool[Array, "row feature"]:
        """True where a loss or its gradient can depend on the pre-activation. True for all latents that are on."""
        return pre > 0


class SelectiveActivation(Activation):
    """An activation that selects latents by comparing them (TopK, GroupMax, BatchTopK). Its field `k` sets how many."""

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
        wider.init(n_features, dtype)  # raises if this k does not fit
        return wider
