"""One small decoder in the three layouts that every surgery must serve alike."""

from __future__ import annotations

import jax
import pytest

from jax_interp.models.config import Config
from jax_interp.models.decoder import init
from jax_interp.surgery import replan

DEPTH = 6
# Heads of 16 features: XLA's CPU backend rounds the tiny matrix products of narrower ones by what surrounds them.
CONFIG = Config(n_layers=DEPTH, d_model=64, n_heads=4, n_kv_heads=2, d_mlp=128, vocab_size=96, n_ctx=64)
LAYOUTS = {"scanned": (), "unrolled": "*", "mixed": ["1:3", -1]}


@pytest.fixture(scope="session")
def base():
    # weights larger than at initialisation, so that attention is peaky and edits have visible effects
    return jax.tree.map(lambda w: 6.0 * w if w.ndim > 2 else w, init(CONFIG, jax.random.key(0)))


# The mixed layout holds blocks of both kinds; all scanned and all unrolled once more is for the slow run.
@pytest.fixture(
    scope="session", params=["mixed", *(pytest.param(name, marks=pytest.mark.slow) for name in ("scanned", "unrolled"))]
)
def model(request, base):
    return replan(base, LAYOUTS[request.param])


@pytest.fixture(scope="session")
def tokens():
    return jax.random.randint(jax.random.key(1), (3, 12), 0, CONFIG.vocab_size)
