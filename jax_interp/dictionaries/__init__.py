"""Sparse dictionaries: read one or more values, activate, write one or more values.

forms/             where a dictionary reads and writes: SAE
activations/       which latents are on: TopK
losses/            what it is trained for
sparse.py          arithmetic on k-sparse codes
buffer.py, harvest.py, normalisation.py, decoder_norm.py, train.py     training in the step that harvests
reconstruction.py, downstream.py, evaluate.py                          what it is worth
features.py        what its features are
storage.py         on disk

config = DictionaryConfig(address="blocks.2.resid_post", n_features=4096, k=32, steps=800)
sae = train_dictionary(config, model, batch_at, run="runs/sae")
result = evaluate(model, config.address, sae, batches)
model_with = edit(model, at(config.address, Splice(sae)))
"""

from jax_interp.dictionaries.activations import TopK
from jax_interp.dictionaries.downstream import Identity
from jax_interp.dictionaries.evaluate import Evaluation, evaluate
from jax_interp.dictionaries.features import features_on_token, logit_effect, top_activations
from jax_interp.dictionaries.forms import SAE, init_sae
from jax_interp.dictionaries.storage import load_dictionary, save_dictionary
from jax_interp.dictionaries.train import DictionaryConfig, train_dictionary

__all__ = [
    "SAE",
    "DictionaryConfig",
    "Evaluation",
    "Identity",
    "TopK",
    "evaluate",
    "features_on_token",
    "init_sae",
    "load_dictionary",
    "logit_effect",
    "save_dictionary",
    "top_activations",
    "train_dictionary",
]
