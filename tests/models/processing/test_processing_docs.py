"""The code of docs/processing.md runs as it stands, and the processed model predicts what the raw one does."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pages


def test_the_page_runs():
    names = pages.run("processing.md")
    with pages.as_a_reader():
        tokens = jnp.array([names["tokenizer"].encode("def mean(self, values):\n    return sum(", bos=True)])
        call = jax.jit(lambda model: jax.nn.log_softmax(model(tokens)))
        raw, processed = call(names["model"]), call(names["processed"])
    np.testing.assert_allclose(processed, raw, atol=1e-3)
    assert not names["processed"].config.norm_affine
    assert not names["processed"].config.tied_embedding
