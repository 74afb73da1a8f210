"""The code of docs/processing.md runs as it stands, and the processed model predicts what the raw one does."""

from __future__ import annotations

import re
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np

PAGE = Path(__file__).parents[3] / "docs" / "processing.md"


def test_the_page_runs():
    names: dict = {}
    with jax.numpy_dtype_promotion("standard"), jax.numpy_rank_promotion("allow"):  # as a reader would run it
        for block in re.findall(r"```python\n(.*?)```", PAGE.read_text(), re.DOTALL):
            exec(compile(block, str(PAGE), "exec"), names)
        tokens = jnp.array([names["tokenizer"].encode("def mean(self, values):\n    return sum(", bos=True)])
        call = jax.jit(lambda model: jax.nn.log_softmax(model(tokens)))
        raw, processed = call(names["model"]), call(names["processed"])
    np.testing.assert_allclose(processed, raw, atol=1e-3)
    assert not names["processed"].config.norm_affine
    assert not names["processed"].config.tied_embedding
