"""Files of `sae_lens` compute the same here and there, and so do files that are written here.

`sae_lens` writes every architecture with random weights, layouts of its earlier versions and checkpoints of training.
"""

from __future__ import annotations

import dataclasses
import json

import numpy as np
import pytest
from measured import record
from oracle import run_oracle

from jax_interp.core.errors import UserError
from jax_interp.core.json_files import read_json
from jax_interp.dictionaries.formats import Files
from jax_interp.dictionaries.formats.detection import detect
from jax_interp.dictionaries.formats.saelens import SAELens

pytestmark = pytest.mark.parity
CLOSE = 1e-5


@pytest.fixture(scope="module")
def written_there(tmp_path_factory):
    folder = tmp_path_factory.mktemp("saelens")
    run_oracle("saelens", "saelens_write.py", folder)
    return folder


def ours(folder):
    """(what is read, inputs, latents, output)."""
    release = folder / "release.json"
    files = dataclasses.replace(Files.at(folder), settings=read_json(release) if release.exists() else {})
    assert detect(files) is SAELens
    saved, x = SAELens.read(files), np.load(folder / "expected.npz")["x"]
    widened = saved.dictionary  # sae_lens computes in float32, whatever the file has
    if str(saved.dictionary.b_dec.dtype) == "bfloat16":
        from jax_interp.dictionaries import load_dictionary

        widened = load_dictionary(folder).dictionary
    z = widened.encode(x)
    return dataclasses.replace(saved, dictionary=widened), x, np.asarray(z), np.asarray(widened(x))


def worst(found, expected) -> float:
    """The largest difference, relative to the largest number."""
    return float(np.abs(found - expected).max() / max(1.0, np.abs(expected).max()))


def test_what_sae_lens_writes_computes_the_same_here(written_there):
    cases, bad = sorted(path for path in written_there.iterdir()), []
    assert len(cases) > 60
    for folder in cases:
        expected = np.load(folder / "expected.npz")
        _, _, z, y = ours(folder)
        assert (expected["latents"] != 0).any()
        difference = max(worst(z, expected["latents"]), worst(y.reshape(expected["output"].shape), expected["output"]))
        record("saelens", folder.name, "read", difference)
        if not difference < CLOSE:
            bad.append(f"{folder.name}: {difference:.2g}")
    assert not bad, "\n".join(bad)


def test_what_is_written_here_computes_the_same_in_sae_lens(written_there, tmp_path):
    kept, bad = {}, []
    for folder in sorted(written_there.iterdir()):
        saved, x, z, y = ours(folder)
        try:
            SAELens.write(saved, tmp_path / folder.name)
        except UserError as error:  # nothing that SAELens wrote is refused, but what its own loader refuses
            bad.append(f"{folder.name}: {error}")
            continue
        np.save(tmp_path / folder.name / "x.npy", x)
        kept[folder.name] = z, y
    run_oracle("saelens", "saelens_read.py", tmp_path)
    for name, (z, y) in kept.items():
        theirs = np.load(tmp_path / name / "theirs.npz")
        difference = max(worst(theirs["latents"], z), worst(theirs["output"].reshape(y.shape), y))
        record("saelens", name, "write", difference)
        again = read_json(tmp_path / name / "cfg.json")
        assert json.dumps(again["metadata"]["sae_lens_version"])
        if not difference < CLOSE:
            bad.append(f"{name}: {difference:.2g}")
    assert not bad, "\n".join(bad)
