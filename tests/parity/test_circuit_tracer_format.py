"""circuit-tracer: what it writes is read here, and what is written here it loads, to the same latents and outputs."""

from __future__ import annotations

import jax.numpy as jnp
import numpy as np
import pytest
from measured import record
from oracle import run_oracle

from jax_interp.dictionaries import Dictionary, ReLU, load_dictionary, save_dictionary
from jax_interp.dictionaries.activations.jumprelu import Jump
from jax_interp.dictionaries.forms.cross_layer import CrossLayer, Source, from_transcoders
from jax_interp.dictionaries.storage import Saved

pytestmark = pytest.mark.parity
NAMES = ("relu", "jumprelu", "topk", "relu_skip", "jumprelu_skip", "clt_relu", "clt_jump_relu")
D, M, LAYERS = 12, 40, 3


@pytest.fixture(scope="module")
def written(tmp_path_factory):
    folder = tmp_path_factory.mktemp("circuit_tracer")
    run_oracle("circuit_tracer", "circuit_tracer_files.py", "write", folder)
    return folder


@pytest.mark.parametrize("name", NAMES)
def test_what_circuit_tracer_writes_is_read(name, written):
    data = np.load(written / name / "data.npz")
    saved = load_dictionary(written / name)
    assert saved.format == "circuit-tracer"
    assert saved.address == tuple(f"blocks.{i}.resid_mid" for i in range(LAYERS))
    record("circuit-tracer", name, "read", same(saved.dictionary, data))
    if not name.startswith("clt"):
        for i in range(LAYERS):
            one = load_dictionary(written / name / f"layer_{i}.safetensors")
            same(one.dictionary, {part: data[part][i] for part in data.files})


def same(dictionary, data) -> float:
    """The largest difference of latents and outputs, relative to the largest output. It is at most 1e-5."""
    x, scale = jnp.asarray(data["x"]), max(1.0, np.abs(data["outputs"]).max())
    latents = np.abs(np.asarray(dictionary.encode(x)) - data["latents"]).max()
    outputs = np.abs(np.asarray(dictionary(x)) - data["outputs"]).max() / scale
    assert max(latents, outputs) < 1e-5
    assert np.mean(data["latents"] > 0) > 0.05
    return float(max(latents, outputs))


def made(rng, activation, skip, window):
    random = lambda *shape: jnp.asarray(rng.standard_normal(shape), jnp.float32)
    kind = lambda: Jump.of(jnp.abs(random(M))) if activation == "jumprelu" else ReLU()
    if window == 1:
        return from_transcoders(
            [
                Dictionary(
                    random(D, M), random(M), random(M, D), random(D), kind(), random(D, D) if skip else None, False
                )
                for _ in range(LAYERS)
            ]
        )
    sources = [Source(random(D, M), random(M), random(M, LAYERS - i, D), kind()) for i in range(LAYERS)]
    return CrossLayer(tuple(sources), random(LAYERS, D))


CASES = {
    f"{activation}, {'all layers' if window is None else 'one layer'}, {'normalized' if norm else 'stream'}": (
        activation, skip, window, norm)
    for activation, skip, window in [("relu", False, 1), ("jumprelu", True, 1), ("relu", False, None),
                                     ("jumprelu", False, None)]
    for norm in (False, True)
}  # fmt: skip


@pytest.fixture(scope="module")
def loaded(tmp_path_factory):
    """What is written here, and what circuit-tracer computes from it: {case: (what was saved, folder)}."""
    root, found = tmp_path_factory.mktemp("written_here"), {}
    for i, (case, (activation, skip, window, normalized)) in enumerate(CASES.items()):
        rng = np.random.default_rng(i)
        value = lambda name: tuple(f"blocks.{i}.{name}" for i in range(LAYERS))
        reads = {"address": None if normalized else value("resid_mid")}
        reads |= {"normalized": value("ln2.normalized")} if normalized else {}
        saved = Saved(
            made(rng, activation, skip, window), model="meta-llama/Llama-3.2-1B", writes=value("mlp_out"), **reads
        )
        folder = save_dictionary(root / str(i), saved, format="circuit-tracer")
        np.save(folder / "x.npy", rng.standard_normal((LAYERS, 9, D)).astype(np.float32))
        found[case] = saved, folder
    run_oracle("circuit_tracer", "circuit_tracer_files.py", "read", root)
    return found


@pytest.mark.parametrize("case", CASES)
def test_circuit_tracer_loads_what_is_written_here(case, loaded):
    saved, folder = loaded[case]
    record("circuit-tracer", case, "write", same(saved.dictionary, np.load(folder / "data.npz")))
    again = load_dictionary(folder)
    assert (again.address, again.normalized, again.writes) == (saved.address, saved.normalized, saved.writes)
    same(again.dictionary, np.load(folder / "data.npz"))
