"""The base class and registry of loss terms, and the inputs of a loss term."""

from __future__ import annotations

import abc
import dataclasses
from collections.abc import Mapping
from typing import Any, ClassVar, Literal

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Key, PyTree

from jax_interp.core.layer import upcast_leaves
from jax_interp.core.objectives import kl_divergence, log_probabilities, mean_squared_error
from jax_interp.core.registry import Registry
from jax_interp.decomposition.components import Decomposed
from jax_interp.decomposition.importance.base import Importance, PerMatrix
from jax_interp.decomposition.losses.adversaries import Adversary
from jax_interp.decomposition.masks import Mask, Masks, Sampling, edits, stochastic_masks
from jax_interp.surgery import edit, read

Compare = Literal["mse", "kl"]
Precision = Literal["float32", "bfloat16"]


@dataclasses.dataclass(frozen=True)
class LossSettings:
    """How masked forward passes run and how outputs are compared. The run's config has the same fields.

    delta: whether there is a Δ component. SPD 2025 has none.
    sampling: the distribution of stochastic masks.
    compare: "mse", or "kl" for logits.
    remat: recompute masked forward passes in the backward pass, which saves memory.
    compute: the dtype of masked forward passes.
    """

    delta: bool = True
    sampling: Sampling = "continuous"
    compare: Compare = "mse"
    remat: bool = False
    compute: Precision = "float32"


@dataclasses.dataclass(frozen=True)
class LossInputs:
    """The inputs of every loss term in one step: a batch, the target's values on it, and the importances.

    Args:
      model: the decomposed model, with the target's weights, and V and U in float32.
      args: the batch, as the model's positional arguments.
      output: the target's output `[batch, ..., d]`.
      importance: the components' importances.
      hidden: the output of every decomposed matrix in the target; None unless some loss has `needs_hidden`.
      progress: the fraction of the run that is done, from 0 to 1.
      settings: how masked forward passes run.
    """

    model: Decomposed
    args: tuple[PyTree, ...]
    output: Array
    importance: Importance
    hidden: PerMatrix | None = None
    progress: Float[Array, ""] | float = 0.0
    settings: LossSettings = LossSettings()

    @property
    def lower(self) -> PerMatrix:
        """The importances that masks use."""
        return self.importance.lower

    def masked(self, masks: Masks, *addresses: str) -> Any:
        """The output of the masked model; or, with `addresses`, a dict of its values there."""

        def forward(model: Decomposed, masks: Masks, args: tuple[PyTree, ...]) -> Any:
            masked = edit(in_precision(self.settings.compute, model), *edits(masks))
            return read(masked, *addresses, output=False)(*args) if addresses else masked(*args)

        run = jax.checkpoint(forward) if self.settings.remat else forward
        return run(self.model, dict(masks), self.args)

    def error(self, masks: Masks) -> Float[Array, ""]:
        """The distance between the outputs of the masked model and of the target."""
        return distance(self.settings.compare, self.output, self.masked(masks))

    def stochastic_masks(self, key: Key[Array, ""]) -> dict[str, Mask]:
        """Stochastic masks for these importances, as the settings say."""
        return stochastic_masks(key, self.lower, delta=self.settings.delta, sampling=self.settings.sampling)

    def stop_gradient(self) -> LossInputs:
        """The same inputs, without gradients into the model and the importances. Adversaries use these inputs."""
        model, importance = jax.lax.stop_gradient((self.model, self.importance))
        return dataclasses.replace(self, model=model, importance=importance)


class Loss:
    """Base class of loss terms. A subclass is a frozen dataclass with its coefficient and options.

    A new loss term is one file:

        @LOSSES.register
        @dataclasses.dataclass(frozen=True)
        class OutputNorm(Loss):
            coefficient: float = 1.0

            def __call__(self, inputs, key, sources=None):
                return jnp.mean(inputs.masked(inputs.stochastic_masks(key)) ** 2)

    Attributes:
      coefficient: the weight of the term in the training loss. It can be traced data, see `train_instances`.
      needs_hidden: whether the term needs `LossInputs.hidden`.
      adversary: the persistent adversary whose sources the term is called with; None: no adversary.
      metric: the term's name in logs; None: the class name.
    """

    coefficient: float
    needs_hidden: ClassVar[bool] = False
    adversary: Adversary | None = None
    metric: ClassVar[str | None] = None

    @abc.abstractmethod
    def __call__(self, inputs: LossInputs, key: Key[Array, ""], sources: PerMatrix | None = None) -> Float[Array, ""]:
        """The value of the term, without its coefficient.

        Args:
          inputs: the batch, see `LossInputs`.
          key: random key of this step and term.
          sources: the raw sources of `adversary`; None for a term without one.
        """
        raise NotImplementedError


LOSSES = Registry("loss", Loss)


def in_precision(compute: Precision, tree: PyTree) -> PyTree:
    """Cast the floating-point arrays of a pytree to bfloat16; or, with "float32", to at least float32."""
    if compute == "float32":
        return upcast_leaves(tree)
    is_float = lambda leaf: hasattr(leaf, "dtype") and jnp.issubdtype(leaf.dtype, jnp.floating)
    return jax.tree.map(lambda leaf: leaf.astype(compute) if is_float(leaf) else leaf, tree)


def distance(compare: Compare, target: Array, output: Array) -> Float[Array, ""]:
    """The mean of `distances`: the mean of squares over all entries, or the mean KL divergence over rows."""
    return jnp.mean(distances(compare, target, output))


def distances(compare: Compare, target: Array, output: Array) -> Float[Array, "batch ..."]:
    """The distance of each row: the mean square over the last axis, or the KL divergence in nats."""
    if compare == "mse":
        return mean_squared_error(target, output)
    return kl_divergence(log_probabilities(target), log_probabilities(output))


def relative_errors(errors: Mapping[str, Array], sizes: Mapping[str, Array]) -> dict[str, Array]:
    """Errors divided by sizes, both `[*layer]` for each matrix. All results are finite.

    A matrix whose size is 0 has no relative error. Its error is divided by the largest size instead, or by 1 if all
    sizes are 0.
    """
    largest = jnp.max(jnp.stack([jnp.max(size) for size in sizes.values()]))
    instead = jnp.where(largest > 0, largest, jnp.ones_like(largest))
    return {name: error / jnp.where(sizes[name] > 0, sizes[name], instead) for name, error in errors.items()}
