"""The recipe of `evaluate`: measure a dictionary on held-out text."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import Mesh

from jax_interp.core import config_json
from jax_interp.core.atomic_write import check_place
from jax_interp.core.errors import UserError
from jax_interp.core.json_files import read_json
from jax_interp.data.harvest import values
from jax_interp.dictionaries.checking import widths_of
from jax_interp.dictionaries.evaluation.downstream import address_tuple
from jax_interp.dictionaries.formats.norm_weight import read_normalized
from jax_interp.dictionaries.forms.cross_layer import CrossLayer
from jax_interp.dictionaries.loading import load_dictionary
from jax_interp.dictionaries.saving import NATIVE
from jax_interp.dictionaries.storage import Saved
from jax_interp.dictionaries.training.config import DictionaryConfig
from jax_interp.recipes.dictionary import DictionaryRunConfig, Inputs, inputs_for, measure, show_features
from jax_interp.recipes.evaluations import Kind, write_evaluation, write_new
from jax_interp.recipes.feature_page import PAGE
from jax_interp.surgery import Model, canonical
from jax_interp.training import on_mesh


@dataclasses.dataclass(frozen=True)
class EvaluatedDictionary:
    """The figures of a saved dictionary.

    Args:
      saved: the dictionary.
      config: the run that gives the model, the text and the number of sequences.
      figures: the figures as JSON values, with the names of model and text.
      written_to: the file with the figures; None if they were not written.
      page: the page of the features; None if it was not written.
    """

    saved: Saved
    config: DictionaryRunConfig
    figures: dict[str, Any]
    written_to: Path | None
    page: Path | None = None


@dataclasses.dataclass(frozen=True)
class Asked:
    """What a user asks of `evaluate_saved`. None, or no address: as the run or the files of the dictionary say."""

    model: str | None = None
    """The model to use."""
    text: str | None = None
    """The text to use."""
    sequences: int | None = None
    """The number of held-out sequences."""
    context: int | None = None
    """The number of tokens in a sequence."""
    address: tuple[str, ...] = ()
    """The address that the dictionary reads, or several."""
    writes: tuple[str, ...] = ()
    """The address that the dictionary writes, or several."""


def evaluate_saved(
    source: Path | str,
    id: str | None = None,
    *,
    asked: Asked = Asked(),
    format: str | None = None,
    write_to: Path | None = None,
    features: int | None = None,
    mesh: Mesh | None = None,
) -> EvaluatedDictionary:
    """Measure a dictionary on held-out text.

    Args:
      source: a run directory of `train-dictionary`, or what `load_dictionary` takes.
      id: the dictionary in a release.
      asked: other inputs than those of the run or the files.
      format: the format of the files; None: it is detected.
      write_to: a new file for the figures. The default for a run or a dictionary of this package is the next free name
        of `evaluation.json`, `evaluation-2.json`, ... in its directory. With other inputs, and for files of
        another program, figures are written only if this is given.
      features: the number of features on the page of features; None: the number in the run's config; 0: no page. The
        page is written where the figures are written by default.
      mesh: the mesh to compute on. None: one device.

    Returns:
      The figures.

    Raises:
      UserError: there is no dictionary, the files do not name model or address, it does not fit the model, there is too
        little text, or the file cannot be written.
    """
    if write_to is not None:
        check_place(write_to)
    opened = open_dictionary(source, id, asked=asked, format=format, mesh=mesh)
    saved, config = opened.saved, opened.config
    with on_mesh(mesh):
        figures = measure(config, saved.dictionary, opened.inputs, saved.reads(), saved.writes)
    if config.text != opened.own.text or not _is_of_a_run(saved):  # the dictionary was trained on other data
        del figures["data"]
    written, page = write_figures(opened, source, figures, "evaluation", write_to), None
    if written is not None and write_to is None:
        if features is not None:
            config = dataclasses.replace(config, page=dataclasses.replace(config.page, features=features))
        with on_mesh(mesh):
            if show_features(config, Path(source), saved.dictionary, opened.inputs, saved=saved, quiet=True):
                page = Path(source) / PAGE
    return EvaluatedDictionary(saved, config, figures, written, page)


@dataclasses.dataclass(frozen=True)
class OpenedDictionary:
    """A dictionary with the model and the text to measure it with."""

    saved: Saved
    own: DictionaryRunConfig
    """The run that is saved with the dictionary, or the default config for its addresses."""
    config: DictionaryRunConfig
    """`own` with the inputs that the user asks for."""
    inputs: Inputs


def open_dictionary(
    source: Path | str,
    id: str | None = None,
    *,
    asked: Asked = Asked(),
    format: str | None = None,
    mesh: Mesh | None = None,
) -> OpenedDictionary:
    """Load a dictionary, its model and its text, and check that they fit.

    Args:
      source: a run directory of `train-dictionary`, or what `load_dictionary` takes.
      id: the dictionary in a release.
      asked: other inputs than those of the run or the files.
      format: the format of the files; None: it is detected.
      mesh: the mesh for the model and the dictionary. None: one device.

    Raises:
      UserError: there is no dictionary, the files do not name model or address, it does not fit the model, there is too
        little text, or the mesh does not divide the batch or an axis of a weight.
    """
    saved = _with_labels(load_dictionary(dictionary_source(source), id, format=format, place=mesh), asked)
    own = run_config(saved)
    of_run = {"model": asked.model, "text": asked.text, "context": asked.context}
    changes = of_run | {"evaluate_sequences": asked.sequences}
    config = dataclasses.replace(own, **{name: value for name, value in changes.items() if value is not None})
    inputs = inputs_for(config, mesh)
    if saved.normalized is not None:
        saved = read_normalized(saved, inputs.model)
    check_widths(inputs.model, saved, config.model)
    return OpenedDictionary(saved, own, config, inputs)


def write_figures(
    opened: OpenedDictionary, source: Path | str, figures: Mapping[str, Any], kind: Kind, write_to: Path | None
) -> Path | None:
    """Write figures to a new file, or beside a dictionary of this package that is measured with its own inputs.

    Args:
      opened: the dictionary.
      source: where it is.
      figures: JSON values.
      kind: the beginning of the file's name beside the dictionary.
      write_to: the new file; None: beside the dictionary.

    Returns:
      The file; None if nothing was written.

    Raises:
      UserError: the file exists with other content, or cannot be written.
    """
    same = all(getattr(opened.config, name) == getattr(opened.own, name) for name in ("model", "text", "context"))
    if write_to is not None:
        return write_new(write_to, figures)
    if opened.saved.format == NATIVE and Path(source).is_dir() and same:
        return write_evaluation(Path(source), figures, kind)
    return None


def _with_labels(saved: Saved, asked: Asked) -> Saved:
    """The dictionary with the addresses that the user gives, and with his model where the files name none."""
    one = lambda names: names[0] if len(names) == 1 else names
    if asked.address:
        saved = dataclasses.replace(saved, address=canonical(one(asked.address)), normalized=None)
    if asked.writes:
        saved = dataclasses.replace(saved, writes=canonical(one(asked.writes)))
    return dataclasses.replace(saved, model=saved.model or asked.model)


def dictionary_source(source: Path | str) -> Path | str:
    """The directory of the dictionary in a run directory; any other source as it is. Raises UserError for a run without
    a dictionary."""
    path = Path(source)
    if not path.is_dir() or (path / "dictionary.json").is_file():
        return source
    if (path / "dictionary" / "dictionary.json").is_file():
        return path / "dictionary"
    if (path / "members").is_dir():
        raise UserError(f"{path} is a sweep: give one of its dictionaries, such as {path / 'members' / '00'}")
    if is_run(path):
        raise UserError(f"{path} is a run without a finished dictionary: train-dictionary writes it at the end")
    return source


def is_run(path: Path) -> bool:
    """Whether a directory is a run of `train-dictionary`. Published dictionaries have a config.json too."""
    try:
        return read_json(path / "config.json").get("type") == DictionaryRunConfig.__name__
    except UserError:
        return False


def check_widths(model: Model, saved: Saved, name: str) -> None:
    """Raises UserError if the values of the model `name` do not have the widths that the dictionary was trained on."""
    reads, writes = address_tuple(saved.reads()), address_tuple(saved.writes or saved.reads())
    tokens = jax.ShapeDtypeStruct((1, 4), jnp.int32)
    widths = [v.shape[1] for v in jax.eval_shape(lambda m, t: values(m, reads + writes, t), model, tokens)]
    read_widths, written_widths = widths[: len(reads)], widths[len(reads) :]
    source, target = widths_of(saved.dictionary)
    if isinstance(saved.dictionary, CrossLayer):
        source, target = saved.dictionary.sources[0].W_enc.shape[0], saved.dictionary.b_dec.shape[1]
        fits = set(read_widths) == {source} and set(written_widths) == {target}
    else:
        fits = (sum(read_widths), sum(written_widths)) == (source, target)
    if not fits:
        raise UserError(
            f"this dictionary reads values of width {source} and writes {target}; those of {name} have width "
            f"{', '.join(map(str, dict.fromkeys(widths)))}: it was trained on {saved.model}"
        )


def _is_of_a_run(saved: Saved) -> bool:
    return isinstance(saved.config, dict) and saved.config.get("type") == DictionaryRunConfig.__name__


def run_config(saved: Saved) -> DictionaryRunConfig:
    """The config that is saved with a dictionary. If there is none, the default config for its addresses."""
    if _is_of_a_run(saved):
        return config_json.from_json(DictionaryRunConfig, saved.config)
    dictionary = DictionaryConfig(saved.normalized or saved.reads(), writes=saved.writes)
    return DictionaryRunConfig(dictionary, model=saved.model_name())
