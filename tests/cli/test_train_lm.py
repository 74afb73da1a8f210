"""train-lm: a language model from text to weights that the other commands read. The text is Python's own library."""

from __future__ import annotations

import json

import jax
import pytest

SMALL = (
    "stdlib_tiny", "--steps", 4, "--optimization.warmup", 1, "--batch", 2, "--checkpoint-every", 2,
    "--evaluate-every", 4, "--evaluate-windows", 4, "--final-windows", 8, "--baseline-order", None,
    "--text.max-documents", 6, "--text.vocab-size", 300, "--model.vocab-size", 300, "--model.d-model", 16,
    "--model.n-heads", 2, "--model.n-kv-heads", 0, "--model.d-head", 0, "--model.d-mlp", 32, "--model.n-ctx", 32,
    "--quiet",
)  # fmt: skip


@pytest.mark.slow
def test_from_text_to_a_model_that_loads(command, tmp_path):
    code, out, err = command("train-lm", *SMALL, "--run-dir", tmp_path / "run")
    assert code == 0, err
    assert "validation loss" in out
    assert "of the text" in out  # how often it was seen
    results = json.loads((tmp_path / "run" / "results.json").read_text())
    assert 0 < results["validation"]["loss"] < 10
    with jax.numpy_dtype_promotion("standard"):  # the widest of a file's dtypes is taken, here float32 of its norms
        code, out, _ = command("sites", tmp_path / "run" / "export", "embed")
    assert code == 0
    assert "1 × 16 × 16" in out
    code, _, _ = command("generate", "def f(", "--model", tmp_path / "run" / "export", "--max-tokens", 3)
    assert code == 0
    code, _, err = command("train-lm", tmp_path / "run", "--quiet", "--batch", 3)
    assert code == 2
    assert "batch: 2 -> 3" in err
