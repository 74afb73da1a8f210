"""The recipe of `plan`: what a run costs, from its config and the shapes of its model.

    plan = plan_run(Request(config, {"data": 8, "tensor": 4}, "h100"))
    plan.memory, plan.fits, plan.hours

No weights and no text are read, and no arrays are made. The model is a name of `models.public_shapes`, a model of the
package, or what `load_shapes` takes: of a directory or of the hub only the `config.json` is read.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

import jax
import jax.numpy as jnp
from jax.sharding import AbstractMesh

from jax_interp.core.errors import UserError
from jax_interp.core.json_files import read_json
from jax_interp.dashboards import collector
from jax_interp.dashboards.collect_features import page_statistics
from jax_interp.dashboards.features import Latents
from jax_interp.dashboards.form_latents import scores_of
from jax_interp.dashboards.options import PageOptions
from jax_interp.data import harvest
from jax_interp.dictionaries import sharding as dictionary_sharding
from jax_interp.dictionaries.training import cross_layer, sweep, train
from jax_interp.dictionaries.training.config import CrossLayerConfig
from jax_interp.models import language_modelling
from jax_interp.models.decoder import Decoder, init
from jax_interp.models.hf import load_shapes
from jax_interp.models.public_shapes import PUBLIC_SHAPES, find_public_shape, public_shapes
from jax_interp.models.sharding import rules_for
from jax_interp.recipes.configs import FoundConfig, find_config
from jax_interp.recipes.decomposition import DecompositionRunConfig
from jax_interp.recipes.decomposition.method import method_for
from jax_interp.recipes.dictionary import DictionaryRunConfig
from jax_interp.recipes.train_lm import LanguageModelConfig
from jax_interp.toys import find_toy
from jax_interp.training.meshes import abstract_mesh
from jax_interp.training.planning.accelerators import Accelerator
from jax_interp.training.planning.plan import Plan, plan_step
from jax_interp.training.planning.planned import PlannedStep, token_batch

RunConfig = DictionaryRunConfig | LanguageModelConfig | DecompositionRunConfig
KINDS: Mapping[str, type[RunConfig]] = {
    "dictionary": DictionaryRunConfig,
    "decomposition": DecompositionRunConfig,
    "optimization": LanguageModelConfig,
}
"""The configs that can be planned, by a field that only they have."""
What = Literal["training", "features", "harvest"]


@dataclasses.dataclass(frozen=True)
class Request:
    """What is planned.

    Attributes:
      config: the config of the run.
      mesh: the size of each mesh axis. None: one device.
      device: the accelerator.
      what: "training"; or "features": the pass for the page of features of a dictionary; or "harvest": the model's
        values at the addresses of a dictionary.
      efficiency: the share of every peak rate that is assumed to be reached.
    """

    config: RunConfig
    mesh: Mapping[str, int] | None
    device: Accelerator
    what: What = "training"
    efficiency: float = 0.5

    def abstract_mesh(self) -> AbstractMesh | None:
        """The mesh, without devices."""
        return None if self.mesh is None else abstract_mesh(**self.mesh, explicit=False)


def find_run(source: str) -> FoundConfig[RunConfig]:
    """Find a config of a kind that can be planned, as `find_config` does.

    Raises:
      UserError: there is no such config, or it is of another kind.
    """
    path = Path(source)
    file = path / "config.json" if (path / "config.json").is_file() else path
    if file.suffix == ".json" and file.is_file():
        kind = next((kind for field, kind in KINDS.items() if field in read_json(file)), None)
        if kind is None:
            raise _other_kind(source)
        return find_config(kind, source)
    found: FoundConfig[Any] = find_config(object, source)
    if not isinstance(found.config, tuple(KINDS.values())):
        raise _other_kind(source, type(found.config).__name__)
    return found


def _other_kind(source: str, kind: str = "config of another kind") -> UserError:
    plannable = ", ".join(sorted(kind.__name__ for kind in KINDS.values()))
    return UserError(
        f"{source} has a {kind}, which has no training step to plan; plan takes {plannable}. What probes and circuits "
        "cost is mostly the model's forward passes: --of harvest plans these"
    )


def plan_run(request: Request) -> Plan:
    """Plan a run.

    Raises:
      UserError: the model is not known, or a mesh axis does not divide the batch or a weight.
    """
    return plan_step(planned_run(request), request.abstract_mesh(), request.device, efficiency=request.efficiency)


def planned_run(request: Request) -> PlannedStep:
    """The step of a run, by shapes."""
    config = request.config
    if request.what != "training" and not isinstance(config, DictionaryRunConfig):
        raise UserError(f"--of {request.what} is for configs of dictionaries; this is a {type(config).__name__}")
    if isinstance(config, LanguageModelConfig):
        model = jax.eval_shape(lambda: init(config.model, jax.random.key(0)))
        of = (config.optimization, config.steps, config.batch, config.model.n_ctx)
        return language_modelling.planned(model, *of, accumulate=config.accumulate, save=config.remat)
    if isinstance(config, DecompositionRunConfig):
        return _decomposition(config)
    model = model_shapes(config.model, config.dtype)
    batch = token_batch(config.batch, config.context)
    if request.what == "harvest":
        return harvest.planned(model, rules_for(model), config.dictionary.addresses, batch, config.dictionary.steps)
    if request.what == "features":
        return _features(config, model, batch)
    trained = config.dictionary
    if isinstance(trained, CrossLayerConfig):
        return cross_layer.planned(trained, model, batch)
    if config.sweep is not None:
        batched = request.device.platform != "cpu"
        return sweep.planned(trained, config.sweep, model, batch, batched)
    return train.planned(trained, model, batch)


def model_shapes(name: str, dtype: str | None = None) -> Decoder:
    """The shapes of a model: a published one by name, or what `load_shapes` takes.

    Raises:
      UserError: there is no such model. The message lists the names that need no files.
    """
    if find_public_shape(name) is not None and not Path(name).is_dir():
        found = public_shapes(name, dtype=dtype)
        assert found is not None
        return found
    try:
        return load_shapes(name, dtype=dtype)
    except UserError as error:
        names = ", ".join(one.name for one in PUBLIC_SHAPES)
        raise UserError(f"{error}. Sizes that need no files: {names}") from error


def _decomposition(config: DecompositionRunConfig) -> PlannedStep:
    settings, method = config.decomposition, method_for(config.decomposition)
    kind, colon, preset = config.target.partition(":")
    if not colon:
        model = model_shapes(config.target)
        tokens = jax.ShapeDtypeStruct((settings.batch, config.context), jnp.int32)
        return method.planned(settings, model, tokens, settings.batch * config.context)
    toy = find_toy(kind)
    model = toy.target(preset, config.target_seed)
    model = toy.collapse(model) if config.collapsed else model
    sample = lambda key: toy.sample(model, key, settings.batch)
    example = jax.eval_shape(sample, jax.random.key(0))
    return method.planned(settings, model, example, settings.batch, sample)


def _features(config: DictionaryRunConfig, model: Decoder, batch: tuple[Any, Any]) -> PlannedStep:
    """The pass for the page of features, as `recipes.feature_page` makes it."""
    trained, page = config.dictionary, config.page
    if config.sweep is not None:
        raise UserError("--of features plans the page of one dictionary: leave the sweep out")
    if isinstance(trained, CrossLayerConfig):
        planned = cross_layer.planned(trained, model, batch)
    else:
        planned = train.planned(trained, model, batch)
    dictionary = planned.state.learner.dictionary
    total = trained.n_features * (len(trained.reads) if isinstance(trained, CrossLayerConfig) else 1)
    shown = min(page.features, total)
    if not shown:
        raise UserError("page.features=0: there is no page of features to plan")
    scores = scores_of(dictionary, trained.address)
    if shown < total and isinstance(scores, Latents):
        features: Any = jax.ShapeDtypeStruct((shown,), jnp.int32)
        scores = dataclasses.replace(scores, features=features)
    statistics = page_statistics(PageOptions(top=page.examples))
    of_scores, of_model = (scores, dictionary_sharding.rules(scores)), (model, rules_for(model))
    batches = math.ceil(page.sequences(config.context) / config.batch)
    return collector.planned(of_scores, of_model, batch, statistics, batches)
