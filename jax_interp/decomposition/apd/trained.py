"""A trained APD decomposition (its model and its threshold), and the file format for it."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from jax_interp.core.layer import upcast_leaves
from jax_interp.core.leaves import PyTree
from jax_interp.core.pytrees import register_dataclass
from jax_interp.decomposition.apd.attributions import attributions, top_k_threshold
from jax_interp.decomposition.apd.config import APDConfig
from jax_interp.decomposition.apd.train import initial_decomposition
from jax_interp.decomposition.components import Decomposed
from jax_interp.decomposition.matrices import check_tied
from jax_interp.decomposition.storage import fill_tree, read_tree, write_tree
from jax_interp.surgery.contract import Model
from jax_interp.surgery.taps import static


@register_dataclass
@dataclasses.dataclass(frozen=True)
class TrainedAPD:
    """A decomposed model and an attribution threshold.

    Training keeps the top k of a batch. With a fixed threshold the mask of one input does not depend on the others.

    model: the decomposed model. Each component consists of `rank` neighbouring subcomponents of every matrix.
    threshold: a component is kept if its attribution is at least this.
    rank: the number of neighbouring subcomponents in one component.
    """

    model: Decomposed
    threshold: Float[Array, ""]
    rank: int = static()

    @property
    def C(self) -> int:
        """The number of components."""
        return next(iter(self.model.components.values())).C // self.rank

    def attributions(self, x: PyTree) -> Float[Array, "batch C"]:
        """The attributions of the output to the components, see `attributions.attributions`."""
        return attributions(self.model, self.rank, x)

    def kept(self, x: PyTree) -> Float[Array, "batch C"]:
        """1 where a component is kept, 0 elsewhere."""
        scores = self.attributions(x)
        return (scores >= self.threshold).astype(scores.dtype)


def with_threshold(config: APDConfig, model: Decomposed, x: PyTree) -> TrainedAPD:
    """The trained decomposition with the threshold that keeps the top k of one batch.

    Args:
      config: the config of the run. If it has no `top_k`, all components are kept.
      model: what `train_apd` returned.
      x: the batch.
    """
    if config.top_k is None:
        return TrainedAPD(model, jnp.zeros((), jnp.float32), config.rank)
    k = config.top_k
    threshold = jax.jit(lambda model, x: top_k_threshold(attributions(model, config.rank, x), k))(model, x)
    above_zero = jnp.finfo(threshold.dtype).tiny  # like `batch_top_k`, keep no component with an attribution of 0
    return TrainedAPD(model, jnp.maximum(threshold, above_zero), config.rank)


def save_apd(path: Path | str, trained: TrainedAPD, config: APDConfig) -> None:
    """Save V, U and the threshold as one safetensors file, with the config in its header.

    The target's weights are not saved.
    """
    write_tree(
        path, {"components": trained.model.components, "threshold": trained.threshold}, config, trained.model.target
    )


def load_apd(path: Path | str, model: Model) -> tuple[TrainedAPD, APDConfig]:
    """Load a decomposition that `save_apd` wrote.

    Args:
      path: the file.
      model: the target that was decomposed.

    Returns:
      The decomposition and its config.

    Raises:
      UserError: the file does not exist, or it belongs to another method or another model: with other shapes, or with
        other matrices.
    """
    file, config = read_tree(path, APDConfig)

    def blank(model: Model) -> PyTree:
        return {"components": initial_decomposition(config, model).components, "threshold": jnp.zeros((), jnp.float32)}

    check_tied(model, config.tied)
    tree = fill_tree(path, jax.eval_shape(blank, model), file, model)
    parts = Decomposed(upcast_leaves(model), tree["components"], config.tied)
    return TrainedAPD(parts, tree["threshold"], config.rank), config
