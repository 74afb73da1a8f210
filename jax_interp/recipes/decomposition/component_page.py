"""The page of the components of a decomposed language model: where in a text each one is important.

components.html                                    the page
components/features.json, features.safetensors     its data
"""

from __future__ import annotations

import dataclasses
from pathlib import Path

from jax_interp.core.errors import UserError
from jax_interp.dashboards.collect_features import collect_units
from jax_interp.dashboards.components import WINDOWS, ComponentScores, component_places
from jax_interp.dashboards.feature_page import prompt_features, write_feature_page
from jax_interp.dashboards.options import Names, PageOptions
from jax_interp.decomposition.top_components import top_components
from jax_interp.decomposition.train import Trained
from jax_interp.recipes.decomposition.method import HeldOut
from jax_interp.recipes.feature_page import FeaturePageConfig, passages

PAGE, DATA = "components.html", "components"


def write_component_page(
    directory: Path, trained: Trained, held_out: HeldOut, config: FeaturePageConfig, names: Names
) -> Path | None:
    """Collect where the strongest components of each matrix are important, and write the page and its data.

    Args:
      directory: where the page and its data are written.
      trained: the decomposition.
      held_out: the data, with the strings of its tokens.
      config: how much is collected. The same number of components is shown for each matrix.
      names: the names of the model and the text, for the reader.

    Returns:
      The page. None if `config.features` is 0, or if the target is not a language model.

    Raises:
      UserError: an effect on the loss is asked for. It is measured only for the features of a dictionary.
    """
    if held_out.strings is None or not config.features:
        return None
    if config.loss_examples:
        raise UserError("page.loss_examples: the effect of ablating a component is not measured here: set it to 0")
    threshold = float(WINDOWS.threshold)
    matrices = len(top_components(trained, held_out.batches[:1], 1, threshold))
    chosen = top_components(trained, held_out.batches, max(1, config.features // matrices), threshold)
    places, rows = component_places(trained, chosen)
    units = {
        own.start + i: f"{name} {component}"
        for name, own in rows.items()
        for i, component in enumerate(chosen[name].components)
    }
    scores = ComponentScores(places)
    options = PageOptions(top=config.examples, token_examples=config.token_examples, threshold=threshold)
    data = collect_units(scores, trained, held_out.batches, options, names=names)
    ids = [int(i) for i in data.token_ids()]
    data = data.with_strings(dict(zip(ids, held_out.strings(ids))))
    data = dataclasses.replace(data, address=" ".join(chosen))
    data.write(directory / DATA)
    texts = passages(held_out.batches, config.passages)
    active = prompt_features(scores, trained, texts, threshold=threshold)
    shown = {"prompts": active, "strings": held_out.strings, "names": units, "score": "importance"}
    return write_feature_page(directory / PAGE, data, **shown)
