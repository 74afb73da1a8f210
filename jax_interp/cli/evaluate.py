"""`jax-interp evaluate RUN_OR_DICTIONARY`: what a trained dictionary is worth."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import jax
import jax.numpy as jnp
import tyro

from jax_interp.cli.arguments import parse
from jax_interp.core import config_json as configs
from jax_interp.core.atomic_write import atomic_write
from jax_interp.core.errors import UserError
from jax_interp.data.harvest import values
from jax_interp.dictionaries.evaluation.downstream import address_tuple
from jax_interp.dictionaries.forms.cross_layer import CrossLayer
from jax_interp.dictionaries.storage import Saved, load_dictionary
from jax_interp.dictionaries.training.config import DictionaryConfig
from jax_interp.recipes.dictionary import DictionaryRunConfig, inputs_for, measure
from jax_interp.views import tables


@dataclass(frozen=True)
class Evaluate:
    """Measure a dictionary on held-out text: sparsity, reconstruction, and what splicing it in costs the model.

    Splicing the identity must give the model's own loss to the bit, which is checked first. The figures are printed
    and written as JSON.
    """

    dictionary: Annotated[tyro.conf.Positional[Path], tyro.conf.arg(metavar="RUN_OR_DICTIONARY")]
    """A run directory of train-dictionary, or a directory with dictionary.json and dictionary.safetensors."""
    sequences: int | None = None
    """Held-out sequences to measure on; default: as the run's config says."""
    model: str | None = None
    """Another model than the one that it was trained on."""
    text: str | None = None
    """Another text: "stdlib", a UTF-8 file or a directory of them; its held-out part is used."""
    json: Path | None = None
    """Where to write the figures; default: evaluation.json in the directory, which has those of its own model and text;
    of others they are printed only, unless a place is given."""


def run(argv: Sequence[str]) -> int:
    asked = parse(Evaluate, argv, command="evaluate")
    saved = load_dictionary(directory_of(asked.dictionary))
    config = _changed(config_of(saved), asked)
    other = (config.model, config.text) != (config_of(saved).model, config_of(saved).text)
    output = asked.json or (None if other else asked.dictionary / "evaluation.json")
    if output is not None and not output.parent.is_dir():
        raise UserError(f"cannot write {output}: there is no directory {output.parent}")
    inputs = inputs_for(config)
    check_fit(inputs.model, saved, config.model)
    result = measure(config, saved.dictionary, inputs, None, saved.address, saved.writes)
    figures = result.to_json() | {"model": config.model, "text": config.text}
    tables.evaluation(result.to_json(), title=f"{tables.named(saved.address, saved.writes)} of {config.model}")
    if output is not None:
        try:
            atomic_write(output, json.dumps(figures, indent=2) + "\n")
        except OSError as error:
            raise UserError(f"cannot write {output}: {error.strerror}") from error
        print(f"written to {output}")
    return 0


def directory_of(path: Path) -> Path:
    """The directory that holds the dictionary of a run or is one. Raises UserError."""
    for candidate in (path, path / "dictionary"):
        if (candidate / "dictionary.json").is_file():
            return candidate
    if not path.is_dir():
        raise UserError(f"no directory {path}: give a run directory of train-dictionary, or a saved dictionary's")
    if (path / "members").is_dir():
        raise UserError(f"{path} is a sweep: give one of its dictionaries, such as {path / 'members' / '00'}")
    if (path / "config.json").is_file():
        raise UserError(f"{path} is a run without a finished dictionary: train-dictionary writes it at the end")
    raise UserError(f"{path} holds neither a run nor a dictionary (dictionary.json and dictionary.safetensors)")


def check_fit(model: Any, saved: Saved, name: str) -> None:
    """UserError where the values of the model `name` have other widths than those the dictionary was trained on."""
    reads, writes = address_tuple(saved.address), address_tuple(saved.writes or saved.address)
    tokens = jax.ShapeDtypeStruct((1, 4), jnp.int32)
    found = [v.shape[1] for v in jax.eval_shape(lambda m, t: values(m, reads + writes, t), model, tokens)]
    into, out = found[: len(reads)], found[len(reads) :]
    if isinstance(saved.dictionary, CrossLayer):
        source, target = saved.dictionary.sources[0].W_enc.shape[0], saved.dictionary.b_dec.shape[1]
        fits = set(into) == {source} and set(out) == {target}
    else:
        source, target = saved.dictionary.d, saved.dictionary.W_dec.shape[1]
        fits = (sum(into), sum(out)) == (source, target)
    if not fits:
        raise UserError(
            f"this dictionary reads values of width {source} and writes {target}; those of {name} have width "
            f"{', '.join(map(str, dict.fromkeys(found)))}: it was trained on {saved.model}"
        )


def config_of(saved: Saved) -> DictionaryRunConfig:
    """The config kept with a dictionary; the defaults, for what it reads and writes, where it was saved otherwise."""
    if isinstance(saved.config, dict) and saved.config.get("type") == DictionaryRunConfig.__name__:
        return configs.from_json(DictionaryRunConfig, saved.config)
    place = DictionaryConfig(saved.address, writes=saved.writes, centred=saved.writes is None)
    return DictionaryRunConfig(place, model=saved.model)


def _changed(config: DictionaryRunConfig, asked: Evaluate) -> DictionaryRunConfig:
    changes = {"model": asked.model, "text": asked.text, "evaluate_sequences": asked.sequences}
    return dataclasses.replace(config, **{name: value for name, value in changes.items() if value is not None})
