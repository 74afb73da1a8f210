"""Sparse dictionaries: SAEs, transcoders, crosscoders and cross-layer transcoders.

forms/             what a dictionary reads and writes: one value, several values, values of later layers
activations/       which latents are on: ReLU, Gated, JumpReLU, TopK, AbsTopK, GroupMax, BatchTopK, MatchingPursuit
losses/            loss terms; the loss of a dictionary is their sum
variants.py        configs of published dictionaries, by name
codes.py, sparse/  the latents of a batch, and products with them that use their sparsity
training/          the trainers: from a stream, from disk, a grid, cross-layer, end to end, jointly with the model
evaluation/        figures of a dictionary, controls to compare it with, known features
geometry/          clusters of latents that describe a plane: separability, mixture index, ranking
sparse_coder.py    the interface that evaluation uses
inference_time.py  the best sparse code for a given decoder, without an encoder
replacement.py     a model that runs on the features of dictionaries
loading.py         load a dictionary from a path, a release or the hub; saving.py saves and uploads one
formats/           the layouts of files: of this package (storage.py) and of other programs
checking.py        the self-test of a loaded dictionary
releases.py        published releases; hub.py fetches their files

Example:
    config = variants.topk("blocks.2.resid_post", k=32, n_features=4096, steps=800)
    sae = train_dictionary(config, model, batch_at, run="runs/sae")
    result = evaluate(model, config.address, sae, batches)
    model_with = edit(model, at(config.address, Splice(sae)))
"""

from jax_interp.dictionaries import variants
from jax_interp.dictionaries.activations import (
    AbsTopK,
    BatchTopK,
    Gated,
    GroupMax,
    JumpReLU,
    MatchingPursuit,
    ReLU,
    TopK,
)
from jax_interp.dictionaries.checking import check_dictionary
from jax_interp.dictionaries.evaluation.downstream import Identity
from jax_interp.dictionaries.evaluation.evaluate import Evaluation, evaluate
from jax_interp.dictionaries.forms import Dictionary, init_sae, init_transcoder
from jax_interp.dictionaries.loading import load_dictionary
from jax_interp.dictionaries.saving import save_dictionary, upload_dictionary
from jax_interp.dictionaries.training.config import (
    Adam,
    CrossLayerConfig,
    DictionaryConfig,
    EndToEndSAEConfig,
    Resampling,
    SAEConfig,
)
from jax_interp.dictionaries.training.cross_layer import train_cross_layer
from jax_interp.dictionaries.training.end_to_end import EndToEndConfig, train_end_to_end
from jax_interp.dictionaries.training.from_store import train_from_store
from jax_interp.dictionaries.training.joint import JointConfig, train_joint
from jax_interp.dictionaries.training.sweep import Sweep, train_sweep
from jax_interp.dictionaries.training.train import train_dictionary

__all__ = [
    "AbsTopK",
    "Adam",
    "BatchTopK",
    "CrossLayerConfig",
    "Dictionary",
    "DictionaryConfig",
    "EndToEndConfig",
    "EndToEndSAEConfig",
    "Evaluation",
    "Gated",
    "GroupMax",
    "Identity",
    "JointConfig",
    "JumpReLU",
    "MatchingPursuit",
    "ReLU",
    "Resampling",
    "SAEConfig",
    "Sweep",
    "TopK",
    "check_dictionary",
    "evaluate",
    "init_sae",
    "init_transcoder",
    "load_dictionary",
    "save_dictionary",
    "train_cross_layer",
    "train_dictionary",
    "train_end_to_end",
    "train_from_store",
    "train_joint",
    "train_sweep",
    "upload_dictionary",
    "variants",
]
