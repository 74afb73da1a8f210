"""A very small language model on part of the source of the Python standard library, for a quick complete run.

    jax-interp train-lm stdlib_tiny --run-dir runs/stdlib-tiny

Two CPU cores, 18 seconds. One run gave a validation loss of 4.53 nats per token, where a 5-gram Kneser-Ney model of the
same text has 3.11. It learns which tokens are frequent, and not how to copy: on random tokens that occur twice, 8.29
nats for the first half and 8.31 for the second.
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
