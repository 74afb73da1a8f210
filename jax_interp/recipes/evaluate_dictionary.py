"""The recipe of `evaluate`: measure a saved dictionary on held-out text."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp

from jax_interp.core import config_json
from jax_interp.core.atomic_write import atomic_write
from jax_interp.core.errors import UserError
from jax_interp.data.harvest import values
from jax_interp.dictionaries.evaluation.downstream import address_tuple
from jax_interp.dictionaries.forms.cross_layer import CrossLayer
from jax_interp.dictionaries.storage import Saved, load_dictionary
from jax_interp.dictionaries.training.config import DictionaryConfig
from jax_interp.recipes.dictionary import DictionaryRunConfig, inputs_for, measure
from jax_interp.surgery import Model


@dataclasses.dataclass(frozen=True)
class EvaluatedDictionary:
    """The figures of a saved dictionary.

    Args:
      saved: the dictionary.
      config: the run that gives the model, the text and the number of sequences.
      figures: the figures as JSON values, with the names of model and text.
      written_to: the file with the figures; None if they were not written.
    """

    saved: Saved
    config: DictionaryRunConfig
    figures: dict[str, Any]
    written_to: Path | None


def evaluate_saved(
    path: Path | str,
    *,
    model: str | None = None,
    text: str | None = None,
    sequences: int | None = None,
    write_to: Path | None = None,
) -> EvaluatedDictionary:
    """Measure a saved dictionary on held-out text.

    Args:
      path: a run directory of `train-dictionary`, or the directory of a saved dictionary.
      model: another model to use; None: the model that the dictionary was trained on.
      text: another text to use; None: the text of the run.
      sequences: the number of held-out sequences; None: the number in the run's config.
      write_to: the file for the figures. The default is `evaluation.json` in `path`. With another model or text,
        figures are written only if this is given.

    Returns:
      The figures.

    Raises:
      UserError: there is no dictionary, it does not fit the model, there is too little text, or the file cannot be
        written.
    """
    path = Path(path)
    saved = load_dictionary(dictionary_directory(path))
    own = run_config(saved)
    changes = {"model": model, "text": text, "evaluate_sequences": sequences}
    config = dataclasses.replace(own, **{name: value for name, value in changes.items() if value is not None})
    if write_to is None and (config.model, config.text) == (own.model, own.text):
        write_to = path / "evaluation.json"
    if write_to is not None and not write_to.parent.is_dir():
        raise UserError(f"cannot write {write_to}: there is no directory {write_to.parent}")
    inputs = inputs_for(config)
    check_widths(inputs.model, saved, config.model)
    result = measure(config, saved.dictionary, inputs, None, saved.address, saved.writes)
    figures = result.to_json() | {"model": config.model, "text": config.text}
    if write_to is not None:
        try:
            atomic_write(write_to, json.dumps(figures, indent=2) + "\n")
        except OSError as error:
            raise UserError(f"cannot write {write_to}: {error.strerror}") from error
    return EvaluatedDictionary(saved, config, figures, write_to)


def dictionary_directory(path: Path) -> Path:
    """The directory of the dictionary in a run directory, or `path` itself if it is one. Raises UserError."""
    for candidate in (path, path / "dictionary"):
        if (candidate / "dictionary.json").is_file():
            return candidate
    if not path.is_dir():
        raise UserError(
            f"no directory {path}: give a run directory of train-dictionary, or the directory of a saved dictionary"
        )
    if (path / "members").is_dir():
        raise UserError(f"{path} is a sweep: give one of its dictionaries, such as {path / 'members' / '00'}")
    if (path / "config.json").is_file():
        raise UserError(f"{path} is a run without a finished dictionary: train-dictionary writes it at the end")
    raise UserError(f"{path} holds neither a run nor a dictionary (dictionary.json and dictionary.safetensors)")


def check_widths(model: Model, saved: Saved, name: str) -> None:
    """Raises UserError if the values of the model `name` do not have the widths that the dictionary was trained on."""
    reads, writes = address_tuple(saved.address), address_tuple(saved.writes or saved.address)
    tokens = jax.ShapeDtypeStruct((1, 4), jnp.int32)
    widths = [v.shape[1] for v in jax.eval_shape(lambda m, t: values(m, reads + writes, t), model, tokens)]
    read_widths, written_widths = widths[: len(reads)], widths[len(reads) :]
    if isinstance(saved.dictionary, CrossLayer):
        source, target = saved.dictionary.sources[0].W_enc.shape[0], saved.dictionary.b_dec.shape[1]
        fits = set(read_widths) == {source} and set(written_widths) == {target}
    else:
        source, target = saved.dictionary.d, saved.dictionary.W_dec.shape[1]
        fits = (sum(read_widths), sum(written_widths)) == (source, target)
    if not fits:
        raise UserError(
            f"this dictionary reads values of width {source} and writes {target}; those of {name} have width "
            f"{', '.join(map(str, dict.fromkeys(widths)))}: it was trained on {saved.model}"
        )


def run_config(saved: Saved) -> DictionaryRunConfig:
    """The config that is saved with a dictionary. If there is none, the default config for its addresses."""
    if isinstance(saved.config, dict) and saved.config.get("type") == DictionaryRunConfig.__name__:
        return config_json.from_json(DictionaryRunConfig, saved.config)
    dictionary = DictionaryConfig(saved.address, writes=saved.writes, centred=saved.writes is None)
    return DictionaryRunConfig(dictionary, model=saved.model)
