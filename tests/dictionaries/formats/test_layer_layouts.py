"""Formats of transcoders and of dictionaries that span layers: what is read computes what the publisher's code does."""

from __future__ import annotations

import jax.numpy as jnp
import numpy as np
import pytest

from jax_interp.dictionaries import load_dictionary
from jax_interp.training.sharding import make_mesh
from tests.dictionaries.formats.published import every_layout

LAYOUTS = every_layout()


@pytest.mark.parametrize("axis", ["absolute", "relative"])
def test_one_file_of_a_folder_is_one_source(axis, tmp_path):
    written = LAYOUTS[f"gemma-scope-2 clt, {axis}" + (", skip" if axis == "absolute" else ", no config")](
        tmp_path, np.random.default_rng(0)
    )
    whole = load_dictionary(written.path, check=False).dictionary
    for i, source in enumerate(whole.sources):
        saved = load_dictionary(written.path / f"params_layer_{i}.safetensors", check=False)
        np.testing.assert_allclose(saved.dictionary.encode(written.x[i]), written.latents[i], atol=2e-5)
        assert saved.dictionary.write_sites == len(whole.sources) - i
        assert saved.normalized == f"blocks.{i}.ln2.normalized"
        targets = tuple(f"blocks.{t}.mlp_out" for t in range(i, len(whole.sources)))
        assert saved.writes == (targets if len(targets) > 1 else targets[0])
        alone = saved.dictionary(jnp.asarray(written.x[i])).reshape(len(written.x[i]), -1, written.x.shape[-1])
        f = whole.sources[i].encode(jnp.asarray(written.x[i]))
        for j in range(len(whole.sources) - i):
            skip = source.W_skip if j == 0 and source.W_skip is not None else 0 * source.W_dec[:6, 0]
            np.testing.assert_allclose(alone[:, j], f @ source.W_dec[:, j] + written.x[i] @ skip, atol=1e-4)
        assert any("one source" in note for note in saved.notes)


@pytest.mark.parametrize(
    ("name", "file"),
    [
        ("circuit-tracer CLT, JumpReLU", "W_enc_1.safetensors"),
        ("gemma-scope-2 clt, absolute, skip", "params_layer_1.safetensors"),
    ],
)
def test_one_source_on_a_mesh(name, file, tmp_path):
    written = LAYOUTS[name](tmp_path, np.random.default_rng(1))
    whole = load_dictionary(written.path / file, check=False).dictionary
    sharded = load_dictionary(written.path / file, check=False, place=make_mesh(fsdp=2, tensor=2)).dictionary
    np.testing.assert_allclose(sharded.W_dec, whole.W_dec, rtol=1e-6)
