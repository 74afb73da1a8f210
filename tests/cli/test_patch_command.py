"""`jax-interp patch` on the packaged model: files, page, tables of pairs, and mistakes as one line."""

from __future__ import annotations

import json

import numpy as np
import pytest

from jax_interp.cli.main import main
from jax_interp.core.errors import UserError
from jax_interp.recipes.patch import PatchConfig, patch_prompts

PAIR = {
    "clean": "def f(data):\n    return len(",
    "corrupted": "def f(name):\n    return len(",
    "answer": "data",
    "other": "name",
}
ARGUMENTS = [part for name, text in PAIR.items() for part in (f"--{name}", text)]


def test_the_files_of_a_pair(tmp_path, capsys):
    out = tmp_path / "out"
    assert main(["patch", "--out", str(out), *ARGUMENTS, "--grids", "head_out", "--quiet"]) == 0
    assert "head_out: 0.26 at layer 3, head 1" in capsys.readouterr().out
    results = json.loads((out / "results.json").read_text())
    values = np.load(out / "head_out.npy")
    assert values.shape == (4, 8, 1)
    best = results["grids"]["head_out"]["largest"][0]
    restored = (values[3, 1, 0] - results["corrupted"]) / (results["clean"] - results["corrupted"])
    assert (best["layer"], best["head"]) == (3, 1)
    assert best["value"] == pytest.approx(restored, abs=1e-5)
    assert f'data-v="{best["value"]:.4g}"' in (out / "patching.html").read_text()
    assert (out / "head_out.svg").read_text().startswith("<svg")
    assert main(["patch", "--out", str(out), *ARGUMENTS]) == 2
    assert "is not an empty directory" in capsys.readouterr().err


def test_a_table_of_pairs_of_different_lengths_is_padded_on_the_left(tmp_path):
    longer = {**PAIR, "clean": "import os\n\n" + PAIR["clean"], "corrupted": "import os\n\n" + PAIR["corrupted"]}
    table = tmp_path / "pairs.jsonl"
    table.write_text("\n".join(map(json.dumps, (PAIR, longer))) + "\n")
    found = patch_prompts(PatchConfig(pairs=table, grids=("resid_pre",)), tmp_path / "out", quiet=True)
    alone = patch_prompts(PatchConfig(**PAIR, grids=("resid_pre",)), tmp_path / "alone", quiet=True)
    both, one = found.effects["resid_pre"].values, alone.effects["resid_pre"].values
    padding = both.shape[1] - one.shape[1]
    assert padding > 0
    np.testing.assert_allclose(both.values[:, padding:, 0], one.values[:, :, 0], atol=1e-3)
    assert "pattern" not in (tmp_path / "out" / "patching.html").read_text()


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"corrupted": "def f(nothing, at, all):"}, "tokens and"),
        ({"answer": "data name"}, "is not one token"),
        ({"corrupted": PAIR["clean"]}, "the metric is the same"),
        ({"other": None}, "other is missing"),
        ({"grids": ("resid_perp",)}, "did you mean 'resid_pre'"),
        ({"grids": ()}, "grids is empty"),
        ({"direction": "up"}, "choose denoise or noise"),
        ({"pairs": "x.jsonl"}, "give either pairs or"),
        ({"budget_mb": 0}, "at least 1"),
    ],
)
def test_mistakes_are_refused_before_a_file_is_written(tmp_path, changed, message):
    with pytest.raises(UserError, match=message):
        patch_prompts(PatchConfig(**{**PAIR, "grids": ("resid_pre",), **changed}), tmp_path / "out", quiet=True)
    assert not (tmp_path / "out").exists()
