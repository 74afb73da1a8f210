"""A whole dictionary run in one run directory: model, text, training, export and evaluation.

    dictionary/dictionary.json, dictionary/dictionary.safetensors   the trained dictionary, for raw activations
    evaluation.json, evaluation-2.json, ...                         its figures on held-out text
    features.html, features/                                        the page of its features, and its data
    inputs.json                                                     fingerprints of weights and text, for a resume

If a run is killed, the same call resumes it, and the result is the same bit for bit.
"""

from __future__ import annotations

import contextlib
import dataclasses
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import jax
import jax.numpy as jnp
from jax.sharding import Mesh
from jaxtyping import Array

from jax_interp.core.decisions import same_everywhere
from jax_interp.core.errors import UserError
from jax_interp.core.json_files import json_digest
from jax_interp.core.leaves import check_finite
from jax_interp.data.activation_import import IMPORTED
from jax_interp.data.activation_store import open_activation_store
from jax_interp.data.harvest import Addresses, harvest, values
from jax_interp.data.text import Text, text_for
from jax_interp.data.tokenizer import Tokenizer
from jax_interp.dictionaries.evaluation.cross_layer import evaluate_cross_layer
from jax_interp.dictionaries.evaluation.downstream import address_tuple
from jax_interp.dictionaries.evaluation.evaluate import evaluate
from jax_interp.dictionaries.forms import Dictionary
from jax_interp.dictionaries.forms.cross_layer import CrossLayer
from jax_interp.dictionaries.forms.dictionary import check_one_width
from jax_interp.dictionaries.replacement import replacement
from jax_interp.dictionaries.saving import save_dictionary
from jax_interp.dictionaries.storage import AnyDictionary, Saved
from jax_interp.dictionaries.training.config import CrossLayerConfig, DictionaryConfig, HarvestedConfig
from jax_interp.dictionaries.training.cross_layer import (
    init_cross_layer,
    init_cross_layer_learner,
    learn_cross_layer,
    train_cross_layer,
)
from jax_interp.dictionaries.training.from_store import train_from_store
from jax_interp.dictionaries.training.learner import BatchAt, without_first
from jax_interp.dictionaries.training.sweep import Sweep, members
from jax_interp.dictionaries.training.train import init_learner, learn, train_dictionary
from jax_interp.models.decoder import Decoder
from jax_interp.models.hf import load
from jax_interp.recipes.feature_page import FeaturePageConfig, Shown, write_page
from jax_interp.recipes.run_inputs import fingerprint, same_inputs
from jax_interp.surgery.contract import Model
from jax_interp.training import Log, Run, SaveTo, open_run
from jax_interp.training.sharding import check_rows

MAY_DIFFER = ("log_every", "checkpoint_every", "evaluate_sequences", "page")
"""Fields that may change between the calls that make up one run."""


@dataclass(frozen=True)
class DictionaryRunConfig:
    """A run of `train-dictionary`: `dictionary.steps` steps of `batch` x `context` tokens each."""

    dictionary: DictionaryConfig | CrossLayerConfig = field(default_factory=lambda: DictionaryConfig())
    model: str = "stdlib-small"
    """The argument of `load`: a name of a model in the package, a Hugging Face directory or a hub name."""
    dtype: Literal["float32", "bfloat16", "float16"] = "float32"
    """The dtype of the model. Weights in another dtype are converted."""
    text: str = "stdlib"
    """"stdlib" (the standard library of Python), a UTF-8 file, a .jsonl or .parquet file, or a directory of them."""
    text_column: str = "text"
    """The column of .jsonl and .parquet files that holds the text."""
    rows: Literal["windows", "documents"] = "windows"
    """"windows": sequences are cut from the joined documents at any place. "documents": a sequence belongs to one
    document and begins with BOS; short ones are padded, and padding is ignored."""
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
    page: FeaturePageConfig = field(default_factory=FeaturePageConfig)
    """The size of the page of features."""
    sweep: Sweep | None = None
    """A grid of dictionaries to train instead of one dictionary."""
    store: str | None = None
    """A store of activations (`jax-interp store`) to train on, `batch` x `context` rows in each step. The model is then
    only needed for the evaluation. All rows are shuffled, so `dictionary.buffer` is not used."""

    def __post_init__(self) -> None:
        for name in ("batch", "context", "evaluate_sequences", "log_every", "checkpoint_every"):
            if getattr(self, name) < 1:
                raise UserError(f"{name}={getattr(self, name)} must be at least 1")
        if self.context < 2:
            raise UserError("context=1 leaves nothing to predict: at least 2")
        if self.sweep is not None and isinstance(self.dictionary, CrossLayerConfig):
            raise UserError("a sweep is over dictionaries of one code: leave it out for a cross-layer one")
        if self.store is not None and (self.sweep is not None or isinstance(self.dictionary, CrossLayerConfig)):
            raise UserError(
                "a store is for one dictionary of one code: leave out the store, or train one such dictionary"
            )

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
    mesh: Mesh | None = None


def inputs_for(config: DictionaryRunConfig, mesh: Mesh | None = None) -> Inputs:
    """Load the model, check the config against it, and read the text.

    Args:
      config: the run.
      mesh: the mesh to train on. The model is placed on it. None: one device.

    Raises:
      UserError: a weight of the model is not finite, an address does not name one vector for each token, widths or
        other numbers do not fit, the text is too short, or the mesh does not divide the batch.
    """
    if mesh is not None:
        check_rows(config.batch, mesh)
    model, tokenizer = load(config.model, dtype=config.dtype, mesh=mesh)
    if tokenizer is None:
        raise UserError(f"{config.model} has no tokenizer.json: its text cannot be cut into tokens")
    check_finite(model, f"the model {config.model}")
    swept = config.sweep.addresses if config.sweep else ()
    for address in swept or config.dictionary.addresses:
        check_address(model, address)
    if isinstance(config.dictionary, CrossLayerConfig):
        check_cross_layer(model, config.dictionary)
    elif config.sweep is not None:
        members(config.dictionary, config.sweep)  # refused before anything is computed
    if not swept and isinstance(config.dictionary, DictionaryConfig):
        check_one_width(config.dictionary.targets, widths_of(model, config.dictionary.targets))
    text = text_for(config.text, tokenizer, rows=config.rows, column=config.text_column)
    same_everywhere("the text", text.fingerprint())
    text.validation_batches(config.batch, config.context, config.evaluate_sequences)  # too little is refused now
    batch_at = text.training_batches(config.batch, config.context, config.dictionary.seed)
    check_step(config.dictionary.with_fields(address=swept[0]) if swept else config.dictionary, model, batch_at)
    return Inputs(model, tokenizer, text, mesh)


def check_address(model: Model, address: str) -> None:
    """Raises UserError if `address` is not a value that a dictionary can read. Only shapes are computed."""
    tokens = jax.ShapeDtypeStruct((1, 4), jnp.int32)
    jax.eval_shape(lambda model, tokens: harvest(model, address, tokens), model, tokens)


def check_step(config: DictionaryConfig | CrossLayerConfig, model: Model, batch_at: BatchAt) -> None:
    """Raises UserError for whatever the first training step would raise. Only its shapes are computed."""
    widths = widths_of(model, config.addresses)
    rows = without_first(batch_at, config.skip_first)(0)[0].size

    def step(x: Array, mean: Array, variance: Array) -> Any:
        key = jax.random.key(0)
        if isinstance(config, CrossLayerConfig):
            return learn_cross_layer(config, init_cross_layer_learner(config, key, widths, mean), x, variance)
        return learn(config, init_learner(config, key, widths, mean), x, variance)

    shapes = (rows, sum(widths)), (sum(widths),), (len(widths),)
    jax.eval_shape(step, *(jax.ShapeDtypeStruct(shape, jnp.float32) for shape in shapes))


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


def opened(
    config: DictionaryRunConfig, run_dir: Path | str, parent: Path | str | None = None
) -> contextlib.AbstractContextManager[Run]:
    """The run directory of a dictionary run, open and locked within a `with` block.

    Args:
      config: the run's config.
      run_dir: the run directory.
      parent: `RUN` or `RUN@STEP`, a checkpoint that a new run starts from.

    Raises:
      UserError: `run_dir` holds a run with another config or another parent, or another process works on it.
    """
    return open_run(run_dir, config, may_differ=MAY_DIFFER, parent=parent)


def train(config: DictionaryRunConfig, run: Run, inputs: Inputs, *, log: Log = Log()) -> Dictionary | CrossLayer:
    """Train in an open run, from the last checkpoint if there is one. The exported dictionary is saved there too.

    Args:
      config: the run's config.
      run: the run, as `opened(config, run_dir)` gives it.
      inputs: the result of `inputs_for(config)`.
      log: what is shown, and where else the log goes. `config.log_every` says how often.

    Returns:
      The dictionary, for raw activations.

    Raises:
      UserError: the run began with other weights, another text or another store, or the store is of other weights.
    """
    trained = config.dictionary
    batch_at = inputs.text.training_batches(config.batch, config.context, trained.seed)
    log = dataclasses.replace(log, every=config.log_every)
    now, store = fingerprint(inputs.model, inputs.text), None
    if config.store is not None:
        store = open_activation_store(config.store)
        if store.manifest.weights not in (now["weights"], IMPORTED):
            raise UserError(f"the store {config.store} was written with other weights than those of {config.model}")
        now["store"] = json_digest({"shards": [shard.sha256 for shard in store.shards]})
    same_inputs(run.directory, now)
    saving = SaveTo(run, every=config.checkpoint_every, keep=2)
    if store is not None:
        assert isinstance(trained, DictionaryConfig)  # the config has checked this
        alone = trained.with_fields(buffer=HarvestedConfig.buffer)
        rows = config.batch * config.context
        dictionary = train_from_store(alone, store, batch=rows, run=saving, place=inputs.mesh, log=log)
    elif isinstance(trained, CrossLayerConfig):
        dictionary = train_cross_layer(trained, inputs.model, batch_at, run=saving, place=inputs.mesh, log=log)
    else:
        dictionary = train_dictionary(trained, inputs.model, batch_at, run=saving, place=inputs.mesh, log=log)
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
    sae: AnyDictionary,
    inputs: Inputs,
    address: Addresses | None = None,
    writes: Addresses | None = None,
) -> dict[str, Any]:
    """Evaluate a dictionary on the held-out text. The identity is evaluated first, as a check.

    Args:
      config: the run, with its text and the number of sequences.
      sae: the dictionary.
      inputs: the result of `inputs_for(config)`.
      address: the address to read; None: the config's.
      writes: the address to write; None: the config's.

    Returns:
      The figures as JSON values, as in the file.
    """
    batches = inputs.text.validation_batches(config.batch, config.context, config.evaluate_sequences)
    reads, writes = address or config.dictionary.address, writes or config.dictionary.writes
    first = config.dictionary.skip_first
    if isinstance(sae, CrossLayer):
        targets = None if writes is None else address_tuple(writes)
        result = evaluate_cross_layer(inputs.model, address_tuple(reads), sae, batches, targets, skip_first=first)
    else:
        result = evaluate(inputs.model, reads, sae, batches, writes=writes, skip_first=first)
    measured = {"model": config.model, "text": config.text, "sequences": config.evaluate_sequences}
    return result.to_json() | measured | {"data": data_seen(config, inputs)}


def show_features(
    config: DictionaryRunConfig,
    directory: Path,
    sae: AnyDictionary,
    inputs: Inputs,
    *,
    saved: Saved | None = None,
    quiet: bool = False,
) -> bool:
    """Write the page of the features of a dictionary, on the held-out text.

    Args:
      config: the run, with the size of the page.
      directory: where the page is written.
      sae: the dictionary.
      inputs: the result of `inputs_for(config)`.
      saved: the addresses of another dictionary than that of the config.
      quiet: print nothing.

    Returns:
      Whether there is a page. There is none if `config.page.features` is 0.
    """
    reads, writes = (
        (config.dictionary.address, config.dictionary.writes) if saved is None else (saved.reads(), saved.writes)
    )
    sequences = config.page.sequences(config.context)
    batches = inputs.text.validation_batches(config.batch, config.context, sequences)
    shown = Shown(inputs.model, inputs.tokenizer, sae, reads, writes, config.model, f"{config.text}, held out")
    return write_page(directory, shown, batches, config.page, quiet=quiet) is not None


def data_seen(config: DictionaryRunConfig, inputs: Inputs) -> dict[str, int]:
    """The number of tokens seen in training, and of tokens in the training part of the text."""
    return {"tokens": config.tokens, "text_tokens": int(inputs.text.train.size)}
