"""Steering vectors of steering-vectors on a small random GPT-2: FOLDER/model, FOLDER/directions.npz.

python steering_vectors_directions.py FOLDER
"""

import sys
from pathlib import Path

import numpy as np
import torch
from steering_vectors import logistic_aggregator, mean_aggregator, pca_aggregator, train_steering_vector
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import GPT2Config, GPT2LMHeadModel, PreTrainedTokenizerFast

VOCAB = 61
EXACT = {"solver": "newton-cholesky", "tol": 1e-8}  # the default solver ends some 1e-3 before the optimum
torch.manual_seed(0)
sizes = {"vocab_size": VOCAB, "n_layer": 3, "n_embd": 24, "n_head": 4, "n_positions": 32}
model = GPT2LMHeadModel(GPT2Config(**sizes)).eval()
with torch.no_grad():
    for parameter in model.parameters():
        parameter.add_(0.1 * torch.randn_like(parameter))

words = Tokenizer(models.WordLevel({f"t{i}": i for i in range(VOCAB)}, unk_token="t0"))
words.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
inputs = ["input_ids", "attention_mask"]  # a GPT-2 that is given types of tokens would add an embedding for them
tokenizer = PreTrainedTokenizerFast(tokenizer_object=words, pad_token="t0", unk_token="t0", model_input_names=inputs)

rng = np.random.default_rng(0)
pairs, tokens = [], np.zeros((2, 12, 8), np.int64)
lengths = rng.integers(4, 9, 12)
for row, length in enumerate(lengths):
    prompt = rng.integers(9, VOCAB, length - 2)
    for side in range(2):
        tokens[side, row, :length] = [*prompt, 5 + (side + row) % 2, 7]
    pairs.append(tuple(" ".join(f"t{i}" for i in tokens[side, row, :length]) for side in range(2)))
found = {"tokens": tokens, "lengths": lengths}
for name, aggregator in (
    ("mean", mean_aggregator()),
    ("pca", pca_aggregator()),
    ("logistic", logistic_aggregator(EXACT)),
):
    vector = train_steering_vector(model, tokenizer, pairs, read_token_index=-2, aggregator=aggregator, batch_size=1)
    found[name] = np.stack([vector.layer_activations[layer].numpy() for layer in range(3)])

folder = Path(sys.argv[1])
model.save_pretrained(folder / "model")
np.savez(folder / "directions.npz", **found)
