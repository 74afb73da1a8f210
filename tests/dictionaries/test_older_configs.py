"""Config files that an earlier version wrote: read as what they are called now, or refused."""

from __future__ import annotations

import pytest

from jax_interp.core.config_json import from_json, to_json, upgrade
from jax_interp.core.errors import UserError
from jax_interp.dictionaries.activations import JumpReLU, ReLU
from jax_interp.dictionaries.losses import L1, Reconstruction, Tanh
from jax_interp.dictionaries.training.config import Adam, CrossLayerConfig, DictionaryConfig, Resampling

COMMON = {
    "skip": False, "dead_after": 200000, "steps": 40, "matmul": None, "buffer": 1024, "seed": 0,
    "optimizer": {
        "type": "Adam", "learning_rate": 0.001, "b1": 0.9, "b2": 0.999, "eps": 6.25e-10, "warmup": 50, "decay": 0.2,
        "clip": 1.0, "offset_rate": None,
    },
}  # fmt: skip
RECONSTRUCTION = {"type": "Reconstruction", "coefficient": 1.0, "kind": "fvu"}
SINGLE = COMMON | {
    "type": "DictionaryConfig", "address": "blocks.2.resid_post", "writes": None, "n_features": 256,
    "activation": {"type": "ReLU"}, "decoder": "unit", "centred": True, "few": [64],
    "loss": [RECONSTRUCTION, {"type": "L1", "coefficient": 0.01, "weight": "none", "warmup": 0.05}],
    "resampling": {"type": "Resampling", "every": 150, "until": 0.6, "encoder_scale": 0.2},
}  # fmt: skip
CROSS_LAYER = COMMON | {
    "type": "CrossLayerConfig", "address": ["a", "b"], "writes": ["c", "d"], "n_features": 64,
    "activation": {"type": "JumpReLU", "threshold": 0.1, "bandwidth": 2.0}, "decoder": "free", "centred": False,
    "loss": [RECONSTRUCTION, {"type": "Tanh", "coefficient": 0.002, "scale": 4.0, "warmup": 1.0}], "few": [],
    "resampling": None, "window": None,
}  # fmt: skip


def test_a_dictionary():
    now = DictionaryConfig(
        "blocks.2.resid_post", n_features=256, activation=ReLU(), loss=(Reconstruction(), L1(0.01, "none", 0.05)),
        resampling=Resampling(every=150), steps=40, optimizer=Adam(clip=1.0), sparse_gradient_sizes=(64,), buffer=1024,
    )  # fmt: skip
    assert from_json(DictionaryConfig, SINGLE) == now
    assert upgrade(SINGLE) == to_json(now)  # this is what a run directory compares


def test_a_cross_layer_dictionary():
    now = CrossLayerConfig(
        ("a", "b"), writes=("c", "d"), n_features=64, activation=JumpReLU(0.1, 2.0),
        loss=(Reconstruction(), Tanh(0.002, 4.0, 1.0)), steps=40, optimizer=Adam(clip=1.0), buffer=1024,
    )  # fmt: skip
    assert from_json(CrossLayerConfig, CROSS_LAYER) == now
    assert upgrade(CROSS_LAYER) == to_json(now)
    with pytest.raises(UserError, match="centred"):
        from_json(CrossLayerConfig, CROSS_LAYER | {"centred": True})
