"""The README's code runs on the model that ships and gives what its comments say.

It runs as it stands, but that the dictionary is smaller, trained for fewer steps and measured on less text.
"""

from __future__ import annotations

import re
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jax_interp.dictionaries import load_dictionary
from jax_interp.surgery import RegionError

README = Path(__file__).parent.parent / "README.md"


@pytest.fixture
def default_promotion():
    """As a reader would run it: without this test-suite's strictness."""
    with jax.numpy_dtype_promotion("standard"), jax.numpy_rank_promotion("allow"):
        yield


def run(*blocks: str) -> dict:
    """The names that the blocks leave behind, one after the other."""
    names: dict = {}
    for block in blocks:
        exec(compile(block, str(README), "exec"), names)
    return names


def blocks() -> list[str]:
    return re.findall(r"```python\n(.*?)```", README.read_text(), re.DOTALL)


def test_the_first_screen_of_code_runs(default_promotion):
    names = run(blocks()[0])
    n = names["tokens"].shape[1]
    assert names["acts"]["blocks.*.resid_post"].shape == (4, 1, n, 256)
    assert set(names["grads"]) == {"blocks.*.resid_post", "blocks.*.attn.z"}
    assert names["grid"].shape[:2] == (4, n)
    # patching the last layer's last position is the donor's own prediction there
    donor = names["call"](names["model"], names["tokens"][:, ::-1])
    np.testing.assert_allclose(names["grid"][-1, -1, 0, -1], donor[0, -1], rtol=1e-3, atol=1e-3)
    assert jnp.isfinite(names["value"])
    outside = names["edit"](names["model"], names["at"]("blocks.1.attn.z", names["Zero"](), head=12))
    with pytest.raises(RegionError, match="12 is outside"):
        jax.eval_shape(outside, names["tokens"])


@pytest.mark.slow
def test_every_block_runs(default_promotion, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)  # the run goes to runs/sae
    first, dictionary, *others = blocks()
    assert not others
    for large, small in {"k=32, n_features=2048, steps=800": "k=8, n_features=64, steps=3, buffer=4096",
                         "sequences=64": "sequences=8"}.items():  # fmt: skip
        assert large in dictionary
        dictionary = dictionary.replace(large, small)
    names = run(first, dictionary)
    assert (tmp_path / "runs" / "sae" / "metrics.jsonl").is_file()
    assert names["sae"].W_dec.shape == (64, 256)
    assert load_dictionary(tmp_path / "runs" / "sae" / "dictionary").address == "blocks.2.resid_post"
    _, acts = names["call"](names["read"](names["held"], "blocks.2.resid_post.latents"), names["tokens"])
    latents = np.asarray(acts["blocks.2.resid_post.latents"])
    np.testing.assert_array_equal(latents[..., 17], 8.0)  # held there at every position
