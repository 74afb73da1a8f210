"""A trained APD decomposition on disk: one safetensors file of V, U and the threshold, its config in the header."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp

from jax_interp.decomposition.apd.train import APDConfig, template
from jax_interp.decomposition.apd.trained import TrainedAPD
from jax_interp.decomposition.components import Decomposed
from jax_interp.decomposition.matrices import check_tied
from jax_interp.decomposition.storage import filled, read_tree, write_tree


def save_apd(path: Path | str, trained: TrainedAPD, config: APDConfig) -> None:
    """Write `components.<entry>.V`, `.U` and `threshold`."""
    write_tree(path, {"components": trained.model.components, "threshold": trained.threshold}, config)


def load_apd(path: Path | str, model: Any) -> tuple[TrainedAPD, APDConfig]:
    """What `save_apd` wrote, of this target. Raises UserError where the file is another one's."""
    flat, config = read_tree(path, APDConfig)

    def blank(model: Any) -> Any:
        return {"components": template(config, model).components, "threshold": jnp.zeros((), jnp.float32)}

    check_tied(model, config.tied)
    tree = filled(path, jax.eval_shape(blank, model), flat)
    return TrainedAPD(Decomposed(model, tree["components"], config.tied), tree["threshold"], config.rank), config
