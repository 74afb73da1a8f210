"""Results such as a demo leaves, by hand and hostile: tokens and names are HTML."""

from __future__ import annotations

from typing import Any

import pytest

EVIL = "<script>alert('x')</script>"


@pytest.fixture
def evil() -> str:
    return EVIL


@pytest.fixture
def results() -> dict[str, Any]:
    """Everything the report shows, with `EVIL` wherever text from outside stands."""
    positions = 24
    loss = {
        f"{name}_by_position": [height + 0.1 * (i % 3) for i in range(positions)]
        for name, height in (("clean", 2.0), ("spliced", 2.2), ("zero", 8.0), ("mean", 6.0))
    }
    loss["clean_by_position"][0] = None
    context = {"tokens": ["def", EVIL, "·x"], "activations": [0.0, 4.0, 1.0], "peak": 1}
    page = {
        "feature": 7, "mean_on": 3.0, "mean_elsewhere": 0.1, "rate_on": 1.0, "rate_elsewhere": 0.0125, "max": 4.0,
        "contexts": [context], "promoted": [(EVIL, 0.5)], "suppressed": [("⏎············", -0.5)],
    }  # fmt: skip
    return {
        "model": {
            "name": EVIL, "parameters": 3_688_704, "n_layers": 2, "d_model": 16, "n_heads": 2, "vocab_size": 300,
            "n_ctx": 64, "text": EVIL, "train_tokens": 1000, "validation_tokens": 100,
            "results": {
                "validation": {"loss": 2.123456, "bits_per_byte": 1.234},
                "baseline": {"loss": 2.9, "model": EVIL},
                "induction": {"first_half": 9.0, "second_half": 1.5},
            },
        },
        "opening": {"texts": ["def", EVIL], "prompt_tokens": 1},
        "dictionary": {
            "name": "TopK sparse autoencoder", "address": "blocks.1.resid_pre", "tokens": 6400, "steps": 100,
            "n_features": 32, "k": 4, "d": 16,
            "records": [
                {"step": 10 * i, "tokens": 640 * i, "loss": 1 / i, "fvu": 0.9 / i, "l0": 4.0, "dead": i}
                for i in range(1, 11)
            ],
        },
        "evaluation": {
            "reconstruction": {"tokens": 100, "fvu": 0.21, "l0": 4.0},
            "density": {
                "features": 32, "window": 100, "dead": 3, "log10_edges": [-2.0, -1.5, -1.0, -0.5, 0.0],
                "counts": [4, 9, 12, 4],
            },
            "cross_entropy": {"recovered_mean": 0.95} | loss,
        },
        "features": {
            "token": EVIL, "occurrences": 12, "searched": 1000, "address": "blocks.1.resid_pre", "found": [page],
            "pages": [page],
        },
        "matter": [page | {"effect": 1.5}],
        "intervention": {
            "feature": 7, "address": "blocks.1.resid_pre", "value": 8.0, "strength": 2.0, "prompt_tokens": 1,
            "columns": [
                {"name": "clean", "description": "the model as it is", "texts": ["def", " f", "("]},
                {"name": "ablated", "description": EVIL, "texts": ["def", " f", EVIL]},
                {"name": "clamped", "description": "held", "texts": ["def", " g", "("]},
            ],
            "kl": {"clean": 0.0, "ablated": 0.5, "clamped": 1.5},
            "probabilities": [
                {"token": EVIL, "clean": 0.9, "ablated": 0.4, "clamped": 0.1},
                {"token": "·=", "clean": 0.05, "ablated": 0.3, "clamped": 0.0},
            ],
        },
        "patching": {
            "name": EVIL, "clean": EVIL, "corrupted": "def f(", "answers": [EVIL, "b"],
            "right": False, "preferred": False,
            "clean_difference": 2.5, "corrupted_difference": -1.0, "clean_tokens": ["def", EVIL, "("],
            "corrupted_tokens": ["def", "·g", "("],
            "titles": {"resid_pre": "residual stream before the block"},
            "panels": {"resid_pre": [[0.0, 1.0, 0.1], [0.0, 0.5, -0.2]]},
        },
        "provenance": {
            "command": EVIL, "config": EVIL, "commit": "abc", "versions": {"jax": "1"}, "cores": 2, "made": "today",
            "seconds": {"Load": 3.0, "Train": 75.0},
        },
    }  # fmt: skip
