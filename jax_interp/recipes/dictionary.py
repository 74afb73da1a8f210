"""A whole dictionary run in one run directory: model, text, training, export and evaluation.

    dictionary/dictionary.json, dictionary/dictionary.safetensors   the trained dictionary, for raw activations
    evaluation.json                                                 its figures on held-out text
    inputs.json                                                     fingerprints of weights and text, for a resume

If a run is killed, the same call resumes it, and the result is the same bit for bit.
"""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

import jax
import jax.numpy as jnp
from jaxtyping import Array

from jax_interp.core.atomic_write import atomic_write
from jax_interp.core.errors import UserError
from jax_interp.data.harvest import Addresses, harvest, values
from jax_interp.data.text import Text, text_for
from jax_interp.data.tokenizer import Tokenizer
from jax_interp.dictionaries.evaluation.cross_layer import CrossLayerEvaluation, evaluate_cross_layer
from jax_interp.dictionaries.evaluation.downstream import address_tuple
from jax_interp.dictionaries.evaluation.evaluate import Evaluation, evaluate
from jax_interp.dictionaries.forms import Dictionary
from jax_interp.dictionaries.forms.cross_layer import CrossLayer
from jax_interp.dictionaries.forms.dictionary import check_one_width
from jax_interp.dictionaries.replacement import replacement
from jax_interp.dictionaries.storage import save_dictionary
from jax_interp.dictionaries.training.config import CrossLayerConfig, DictionaryConfig
from jax_interp.dictionaries.training.cross_layer import init_cross_layer, train_cross_layer
from jax_interp.dictionaries.training.sweep import Sweep, members
from jax_interp.dictionaries.training.train import train_dictionary
from jax_interp.models.decoder import Decoder
from jax_interp.models.hf import load
from jax_interp.recipes.run_inputs import fingerprint, same_inputs
from jax_interp.surgery.contract import Model
from jax_interp.training import Log, SaveTo, open_run

MAY_DIFFER = ("log_every", "checkpoint_every", "evaluate_sequences")


@dataclass(frozen=True)
class DictionaryRunConfig:
    """A run of `train-dictionary`: `dictionary.steps` steps of `batch` x `context` tokens each."""

    dictionary: DictionaryConfig | CrossLayerConfig = field(default_factory=DictionaryConfig)
    model: str = "stdlib-small"
    """The argument of `load`: a name of a model in the package, a Hugging Face directory or a hub name."""
    dtype: Literal["float32", "bfloat16", "float16"] = "float32"
    """The dtype of the model. Weights in another dtype are converted."""
    text: str = "stdlib"
    """"stdlib" (the interpreter's standard library), a UTF-8 file, or a directory of .txt, .py and .md files."""
    batch: int = 8
    """Sequences in each step."""
    context: int = 256
    """Tokens in each sequence."""
    evaluate_sequences: int = 64
    """Held-out sequences that the dictionary is measured on."""
    log_every: int = 10
    """Steps between two records of the log."""
    checkpoint_every: int = 100
    """Steps between two checkpoints."""
    sweep: Sweep | None = None
    """A grid of dictionaries to train instead of one dictionary."""

    def __post_init__(self) -> None:
        for name in ("batch", "context", "evaluate_sequences", "log_every", "checkpoint_every"):
            if getattr(self, name) < 1:
                raise UserError(f"{name}={getattr(self, name)} must be at least 1")
        if self.context < 2:
            raise UserError("context=1 leaves nothing to predict: at least 2")
        if self.sweep is not None and isinstance(self.dictionary, CrossLayerConfig):
            raise UserError("a sweep is over dictionaries of one code: leave it out for a cross-layer one")

    @property
    def tokens(self) -> int:
        """The number of tokens in the training."""
        return self.dictionary.steps * self.batch * self.context


@dataclass(frozen=True)
class Inputs:
    """The inputs of a dictionary run besides its config, as `inputs_for` returns them."""

    model: Decoder
    tokenizer: Tokenizer
    text: Text


def inputs_for(config: DictionaryRunConfig) -> Inputs:
    """Load the model, check the config against it, and read the text.

    Raises:
      UserError: an address does not name one vector for each token, widths do not fit, or the text is too short.
    """
    model, tokenizer = load(config.model, dtype=config.dtype)
    if tokenizer is None:
        raise UserError(f"{config.model} has no tokenizer.json: its text cannot be cut into tokens")
    swept = config.sweep.addresses if config.sweep else ()
    for address in swept or config.dictionary.addresses:
        check_address(model, address)
    if isinstance(config.dictionary, CrossLayerConfig):
        check_cross_layer(model, config.dictionary)
    elif config.sweep is not None:
        members(config.dictionary, config.sweep)  # refused before anything is computed
    if not swept and isinstance(config.dictionary, DictionaryConfig):
        check_one_width(config.dictionary.targets, widths_of(model, config.dictionary.targets))
    text = text_for(config.text, tokenizer)
    text.validation_batches(config.batch, config.context, config.evaluate_sequences)  # too little is refused now
    return Inputs(model, tokenizer, text)


def check_address(model: Model, address: str) -> None:
    """Raises UserError if `address` is not a value that a dictionary can read. Only shapes are computed."""
    tokens = jax.ShapeDtypeStruct((1, 4), jnp.int32)
    jax.eval_shape(lambda model, tokens: harvest(model, address, tokens), model, tokens)


def widths_of(model: Model, addresses: Addresses) -> tuple[int, ...]:
    """The width of the value at each address. Only shapes are computed."""
    tokens = jax.ShapeDtypeStruct((1, 4), jnp.int32)
    found = jax.eval_shape(lambda model, tokens: values(model, addresses, tokens), model, tokens)
    return tuple(value.shape[1] for value in found)


def check_cross_layer(model: Model, config: CrossLayerConfig) -> None:
    """Raises UserError if the values differ in width or are not in the order of the layers. To check this, only the
    shapes of the replacement model are computed."""

    def run(model: Model, tokens: Array) -> Array:
        widths = tuple(value.shape[-1] for value in values(model, config.addresses, tokens))
        dictionary = init_cross_layer(config, jax.random.key(0), widths, jnp.zeros(sum(widths)))
        return replacement(model, config.reads, config.targets, dictionary)(tokens)

    jax.eval_shape(run, model, jax.ShapeDtypeStruct((1, 4), jnp.int32))


def train(
    config: DictionaryRunConfig, run_dir: Path | str, inputs: Inputs, *, quiet: bool = False
) -> Dictionary | CrossLayer:
    """Train in `run_dir`, from the last checkpoint if there is one. The exported dictionary is saved there too.

    Args:
      config: the run.
      run_dir: the run directory.
      inputs: the result of `inputs_for(config)`.
      quiet: show nothing on stderr.

    Returns:
      The dictionary, for raw activations.

    Raises:
      UserError: `run_dir` holds a run with another config, other weights or another text.
    """
    trained = config.dictionary
    batch_at = inputs.text.training_batches(config.batch, config.context, trained.seed)
    log = Log(every=config.log_every, quiet=quiet)
    with open_run(run_dir, config, may_differ=MAY_DIFFER) as run:
        same_inputs(run.directory, fingerprint(inputs.model, inputs.text))
        saving = SaveTo(run, every=config.checkpoint_every, keep=2)
        if isinstance(trained, CrossLayerConfig):
            dictionary = train_cross_layer(trained, inputs.model, batch_at, run=saving, log=log)
        else:
            dictionary = train_dictionary(trained, inputs.model, batch_at, run=saving, log=log)
        save_dictionary(
            run.directory / "dictionary",
            dictionary,
            address=trained.address,
            writes=trained.writes,
            model=config.model,
            config=config,
        )
    return dictionary


def measure(
    config: DictionaryRunConfig,
    sae: Dictionary | CrossLayer,
    inputs: Inputs,
    write_to: Path | None = None,
    address: Addresses | None = None,
    writes: Addresses | None = None,
) -> Evaluation | CrossLayerEvaluation:
    """Evaluate a dictionary on the held-out text. The identity is evaluated first, as a check.

    Args:
      config: the run, with its text and the number of sequences.
      sae: the dictionary.
      inputs: the result of `inputs_for(config)`.
      write_to: a file for the figures, as JSON.
      address: the address to read; None: the config's.
      writes: the address to write; None: the config's.
    """
    batches = inputs.text.validation_batches(config.batch, config.context, config.evaluate_sequences)
    reads, writes = address or config.dictionary.address, writes or config.dictionary.writes
    if isinstance(sae, CrossLayer):
        targets = None if writes is None else address_tuple(writes)
        result = evaluate_cross_layer(inputs.model, address_tuple(reads), sae, batches, targets)
    else:
        result = evaluate(inputs.model, reads, sae, batches, writes=writes)
    if write_to is not None:
        atomic_write(write_to, json.dumps(result.to_json(), indent=2) + "\n")
    return result
