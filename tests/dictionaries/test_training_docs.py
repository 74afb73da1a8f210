"""The code of docs/training-dictionaries.md runs as it stands, block after block."""

from __future__ import annotations

import re
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jax_interp.dictionaries import DictionaryConfig, variants

PAGE = Path(__file__).parents[2] / "docs" / "training-dictionaries.md"


@pytest.mark.slow
def test_the_page_runs():
    names: dict = {}
    with jax.numpy_dtype_promotion("standard"), jax.numpy_rank_promotion("allow"):  # as a reader would run it
        for code in re.findall(r"```python\n(.*?)```", PAGE.read_text(), re.DOTALL):
            exec(compile(code, str(PAGE), "exec"), names)
        x = jnp.ones((3, 256))
        assert names["sae"].encode(x).shape == (3, 512)
        assert ((np.asarray(names["sae"].encode(x)) > 0).sum(axis=1) <= 16).all()
    assert names["sae"].W_dec.shape == (512, 256)
    np.testing.assert_allclose(np.linalg.norm(names["sae"].W_dec, axis=1), 1.0, rtol=1e-4)
    assert {names["member"].address} <= {"blocks.1.resid_post", "blocks.2.resid_post"}
    assert names["dictionary"].W_dec.shape == (256, 256)
    assert [record["step"] for record in names["log"] if "eval.fvu" in record] == [2, 4]
    assert names["tokens"].shape == names["keep"].shape == (8, 64)
    assert names["functional"].W_dec.shape == (128, 256)
    assert not np.array_equal(names["regular"].embed.weight[...], names["model"].embed.weight[...])


def test_the_table_has_every_variant():
    made = {
        name
        for name, value in vars(variants).items()
        if getattr(value, "__module__", "") == variants.__name__ and callable(value)
    }
    rows = re.findall(r"^\| (`.*?) \|", PAGE.read_text(), re.MULTILINE)
    listed = {name for row in rows for name in re.findall(r"`([a-z_]+)`", row)}
    assert made <= listed, made - listed
    assert isinstance(variants.topk("x"), DictionaryConfig)
