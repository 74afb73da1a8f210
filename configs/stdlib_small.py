"""The language model that ships with the package: 3.7 M parameters on the Python standard library's source.

    jax-interp train-lm stdlib_small --run-dir runs/stdlib-small

9.8 M tokens: about an hour on two idle CPU cores. On the library of Python 3.11.7, the validation loss is 2.39 nats per
token (1.10 bits per byte); a 5-gram Kneser-Ney model has 3.67 (1.70). On sequences of random tokens that are repeated
once, the loss is 7.78 nats in the first half and 0.05 in the second.

The model learns to copy from context in steps 1000 to 1300, where half of the windows are repeated random tokens. The
last 300 steps have few such windows. In these steps, half of the windows of text begin with BOS at the beginning of a
document.
"""

from jax_interp.data.prepared import TextConfig
from jax_interp.models.config import Config
from jax_interp.models.language_modelling import Optimization
from jax_interp.recipes.train_lm import LanguageModelConfig

CONFIG = LanguageModelConfig(
    model=Config(n_layers=4, d_model=256, n_heads=8, d_mlp=688, vocab_size=2048, n_ctx=256),
    text=TextConfig(corpus="stdlib", vocab_size=2048),
    optimization=Optimization(learning_rate=3e-3, muon=0.02, warmup=40, decay=0.35, final=0.05, b2=0.98),
    steps=2400,
    batch=16,
    repeats=((0, 0.125),),
    random_repeats=((0, 0.125), (1000, 0.5), (1300, 0.125), (2100, 0.03)),
    documents=((0, 0.25), (2100, 0.5)),
    seed=0,
    log_every=10,
    checkpoint_every=100,
    evaluate_every=200,
)
