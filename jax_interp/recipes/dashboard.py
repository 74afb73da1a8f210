"""The recipe of `dashboard`: the page of the features of a saved dictionary."""

from __future__ import annotations

import dataclasses
import re
from pathlib import Path

import numpy as np
from jax.sharding import Mesh

from jax_interp.core.errors import UserError
from jax_interp.core.processes import on_host
from jax_interp.dashboards.feature_data import FeatureData
from jax_interp.dashboards.form_latents import with_directions
from jax_interp.dashboards.neuronpedia import Source, write_neuronpedia
from jax_interp.dictionaries.forms import Dictionary, Normalised
from jax_interp.dictionaries.loading import check_source
from jax_interp.recipes.evaluate_dictionary import Asked, open_dictionary
from jax_interp.recipes.feature_page import FeaturePageConfig, Shown, write_page
from jax_interp.training import on_mesh


@dataclasses.dataclass(frozen=True)
class PageRequest:
    """Which features of a dictionary are shown, on which texts.

    Args:
      config: how much is collected.
      features: the indices of the features. Empty: `config.features` of them.
      prompts: texts for the view of prompts.
      neuronpedia: an empty or missing directory for the same data as files of Neuronpedia. None: none are written.
      source_set: the name of the set of sources on Neuronpedia. None: the name of the directory of the page.
    """

    config: FeaturePageConfig = dataclasses.field(default_factory=FeaturePageConfig)
    features: tuple[int, ...] = ()
    prompts: tuple[str, ...] = ()
    neuronpedia: Path | None = None
    source_set: str | None = None


def page_of_saved(
    source: Path | str,
    id: str | None = None,
    *,
    request: PageRequest | None = None,
    asked: Asked | None = None,
    format: str | None = None,
    out: Path | None = None,
    quiet: bool = False,
    mesh: Mesh | None = None,
) -> tuple[FeatureData, Path]:
    """Write the page of a saved dictionary.

    Args:
      source: a run directory of `train-dictionary`, or what `load_dictionary` takes.
      id: the dictionary in a release.
      request: what is shown; None: the default.
      asked: other inputs than those of the run or the files; None: these.
      format: the format of the files; None: it is detected.
      out: the directory for the page. None: `source`, which must then be a directory.
      quiet: print nothing.
      mesh: the mesh to compute on. None: one device.

    Returns:
      (the data of the page, the directory).

    Raises:
      UserError: there is no dictionary, it does not fit the model, its files do not say which model or value it is for,
        there is too little text, or a feature does not exist.
    """
    directory = Path(source) if out is None else Path(out)
    if out is None and not directory.is_dir():
        check_source(source)
        raise UserError(f"{str(source)!r} is not a directory here: say where the page goes (--out DIRECTORY)")
    request = request or PageRequest()
    opened = open_dictionary(source, id, asked=asked or Asked(), format=format, mesh=mesh)
    saved, config, inputs = opened.saved, opened.config, opened.inputs
    sequences = request.config.sequences(config.context)
    batches = inputs.text.validation_batches(config.batch, config.context, sequences)
    reads, text = saved.reads(), f"{config.text}, held out"
    shown = Shown(
        inputs.model, inputs.tokenizer, saved.dictionary, reads, saved.writes, config.model, text, saved.notes
    )
    with on_mesh(mesh):
        data = write_page(
            directory, shown, batches, request.config, features=request.features, prompts=request.prompts, quiet=quiet
        )
    if data is None:
        raise UserError("a page of 0 features shows nothing: give at least one")
    if request.neuronpedia is not None:
        vectors = None
        if isinstance(saved.dictionary, (Dictionary, Normalised)):
            vectors = np.asarray(on_host(with_directions(saved.dictionary).W_dec), np.float32)[data.units]
        named = request.source_set or directory.absolute().name
        write_neuronpedia(data, request.neuronpedia, source_of(config.model, reads, named), vectors=vectors)
    return data, directory


def source_of(model: str, reads: str | tuple[str, ...], source_set: str) -> Source:
    """Where features belong on Neuronpedia: the last part of the model's name, and `{layer}-{set}`.

    Args:
      model: the name of the model.
      reads: the address that the dictionary reads, or several. The layer is that of the first.
      source_set: the name of the set.
    """
    first = reads if isinstance(reads, str) else reads[0]
    layer = re.match(r"blocks\.(\d+)\.", first)
    number = "0" if layer is None else layer[1]
    return Source(Path(model).name, f"{number}-{source_set}", source_set)
