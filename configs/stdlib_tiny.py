"""A very small language model on part of the source of the Python standard library, for a quick complete run.

    jax-interp train-lm stdlib_tiny --run-dir runs/stdlib-tiny

Two CPU cores. The model learns frequent tokens, but not to copy from context. Time and loss have not been measured yet.
"""

from jax_interp.data.prepared import TextConfig
from jax_interp.models.config import Config
from jax_interp.models.language_modelling import Optimization
from jax_interp.recipes.train_lm import LanguageModelConfig

CONFIG = LanguageModelConfig(
    model=Config(n_layers=2, d_model=64, n_heads=4, d_mlp=172, vocab_size=512, n_ctx=128),
    text=TextConfig(corpus="stdlib", vocab_size=512, max_documents=60),
    optimization=Optimization(learning_rate=5e-3, warmup=20, decay=0.4, final=0.05),
    steps=200,
    batch=8,
    seed=0,
    log_every=10,
    checkpoint_every=100,
    evaluate_every=100,
    evaluate_windows=32,
    final_windows=256,
)
