"""The language model that ships with the package: 3.7 M parameters on the Python standard library's source.

    jax-interp train-lm stdlib_small --run-dir runs/stdlib-small
"""

from jax_interp.data.prepared import TextConfig
from jax_interp.models.config import Config
from jax_interp.models.language_modelling import Optimization
from jax_interp.models.train_lm import LanguageModelConfig

CONFIG = LanguageModelConfig(
    model=Config(n_layers=4, d_model=256, n_heads=8, d_mlp=688, vocab_size=2048, n_ctx=256),
    text=TextConfig(corpus="stdlib", vocab_size=2048),
    optimization=Optimization(learning_rate=3e-3, warmup=100, decay=0.4, final=0.05, b2=0.98),
    steps=4000,
    batch=8,
    repeats=((0, 0.125), (870, 0.5)),
    seed=0,
    log_every=10,
    checkpoint_every=100,
    evaluate_every=200,
)
