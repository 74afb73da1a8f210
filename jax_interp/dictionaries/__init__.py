"""Sparse dictionaries: read one or more values, activate, write one or more values.

forms/             where a dictionary reads and writes
activations/       which latents are on: ReLU, Gated, JumpReLU, TopK, GroupMax, BatchTopK, MatchingPursuit
losses/            what it is trained for: terms that add up
variants.py        the published combinations of these, by name
codes.py, sparse.py                        a batch's latents, and arithmetic on them that sparsity makes cheap
config.py, harvest.py, train.py, ...       training in the step that harvests
reconstruction.py, downstream.py, evaluate.py                          what it is worth
features.py        what its features are
storage.py         on disk

config = variants.topk("blocks.2.resid_post", k=32, n_features=4096, steps=800)
sae = train_dictionary(config, model, batch_at, run="runs/sae")
result = evaluate(model, config.address, sae, batches)
model_with = edit(model, at(config.address, Splice(sae)))
"""

from jax_interp.dictionaries import variants
from jax_interp.dictionaries.activations import BatchTopK, Gated, GroupMax, JumpReLU, MatchingPursuit, ReLU, TopK
from jax_interp.dictionaries.config import Adam, DictionaryConfig, Resampling
from jax_interp.dictionaries.downstream import Identity
from jax_interp.dictionaries.evaluate import Evaluation, evaluate
from jax_interp.dictionaries.features import features_on_token, logit_effect, top_activations
from jax_interp.dictionaries.forms import Dictionary, init_sae, init_transcoder
from jax_interp.dictionaries.storage import load_dictionary, save_dictionary
from jax_interp.dictionaries.train import train_dictionary

__all__ = [
    "Adam",
    "BatchTopK",
    "Dictionary",
    "DictionaryConfig",
    "Evaluation",
    "Gated",
    "GroupMax",
    "Identity",
    "JumpReLU",
    "MatchingPursuit",
    "ReLU",
    "Resampling",
    "TopK",
    "evaluate",
    "features_on_token",
    "init_sae",
    "init_transcoder",
    "load_dictionary",
    "logit_effect",
    "save_dictionary",
    "top_activations",
    "train_dictionary",
    "variants",
]
