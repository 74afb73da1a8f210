"""Published runs: what their sources say, and configs that fit the toys they are for."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import pytest

from jax_interp.core import config_json as configs
from jax_interp.core.errors import UserError
from jax_interp.decomposition.apd import APDConfig
from jax_interp.decomposition.apd.train import init_state
from jax_interp.decomposition.config import DecompositionConfig, Schedule, WarmUp
from jax_interp.decomposition.importance import SharedMLP
from jax_interp.decomposition.losses import (
    Faithfulness,
    ImportanceMinimality,
    MixedReconstruction,
    PersistentPGD,
    SmoothL0,
)
from jax_interp.decomposition.losses.adversaries import source_shape
from jax_interp.decomposition.presets import APD_PRESETS, PRESETS, preset
from jax_interp.decomposition.train import initial_decomposition
from jax_interp.toys.gated_pwl import gated_pwl
from jax_interp.toys.resid_mlp import PRESETS as RESID
from jax_interp.toys.resid_mlp import init_resid_mlp
from jax_interp.toys.tms import PRESETS as TMS
from jax_interp.toys.tms import TMSConfig, init_tms, insert_identity


def test_every_preset_says_what_it_follows_and_survives_json():
    for kind, presets in ((DecompositionConfig, PRESETS), (APDConfig, APD_PRESETS)):
        for name, config in presets.items():
            assert config.source.split(":")[0] in ("yaml", "paper"), name
            assert configs.from_json(kind, configs.to_json(config)) == config
    with pytest.raises(UserError, match="tms_5_2"):
        preset("tms-5-2")


def test_the_published_numbers():
    """C, p, β, steps, batch, learning rate of the tables."""
    row = lambda c: (
        c.C,
        *((m.p, m.coefficient) for m in c.losses if isinstance(m, ImportanceMinimality)),
        c.steps,
        c.batch,
        c.schedule.rate,
    )
    assert row(preset("tms_5_2")) == (20, (1.0, 3e-3), 10_000, 4096, 1e-3)
    assert row(preset("tms_40_10_id")) == (200, (2.0, 1e-4), 20_000, 4096, 1e-3)
    assert row(preset("resid_mlp1")) == (100, (2.0, 1e-5), 20_000, 2048, 2e-3)
    assert row(preset("resid_mlp1_global")) == (100, (2.0, 1e-5), 20_000, 2048, 2e-3)
    assert row(preset("resid_mlp2")) == (400, (2.0, 1e-4), 25_000, 2048, 3e-4)
    assert row(preset("resid_mlp3")) == (500, (2.0, 1e-5), 50_000, 2048, 1e-3)
    assert row(preset("tms_5_2_v1")) == (20, (1.0, 3e-3), 40_000, 4096, 1e-3)
    assert row(preset("resid_mlp2_v1"))[1] == (2.0, 2e-5)
    assert row(preset("resid_mlp2_v1_paper"))[1] == (2.0, 1e-5)
    merged = preset("resid_mlp1_merged")
    smooth = next(loss for loss in merged.losses if isinstance(loss, SmoothL0))
    assert row(merged) == (200, 50_000, 2048, 2e-3)
    assert (smooth.coefficient, smooth.coefficient * smooth.frequency) == (1e-6, 5e-7)
    assert merged.importance == SharedMLP((400,))
    both = next(loss for loss in preset("tms_5_2_merged").losses if isinstance(loss, MixedReconstruction))
    adversary = both.adversary
    assert (both.coefficient, both.adversarial, both.subset) == (1, 0.5, True)
    assert (adversary.b1, adversary.b2, adversary.learning_rate, adversary.rate_warm_up) == (0.01, 0.99, 0.01, 0.025)
    example = jnp.zeros((7, 20))  # a source for each of seven rows, and Δ's
    assert source_shape(example, "linear1", adversary.scope, delta=True) == (7, 21)
    gate = preset("tms_5_5")
    assert row(gate) == (5, (1.0, 3e-3), 3_000, 2048, 1e-3)
    assert (gate.clip, gate.warm_up.steps, gate.schedule.kind) == (0.01, 150, "constant")
    assert gate.importance == SharedMLP((16,))
    for name in ("tms_5_2_merged", "tms_5_5"):  # what is not as theirs is
        assert "tied" in preset(name).source
    v1, new, pile = preset("tms_5_2_v1"), preset("tms_5_2"), preset("pile_4l")
    assert not v1.delta
    assert any(isinstance(loss, Faithfulness) for loss in v1.losses)
    assert new.delta
    assert not any(isinstance(loss, Faithfulness) for loss in new.losses)
    assert any(isinstance(loss, PersistentPGD) for loss in pile.losses)


def test_the_published_numbers_of_apd():
    """C, top-k, the losses' coefficients and p, steps, batch, learning rate and warm-up of the table."""
    row = lambda c: (
        *(c.C, c.top_k, c.parameter_match, c.top_k_reconstruction, c.activation_reconstruction, c.simplicity, c.p),
        *(c.steps, c.batch, c.schedule.rate, c.schedule.warm_up),
    )
    assert row(APD_PRESETS["tms_5_2"]) == (5, 0.211, 1, 1, 0, 0.7, 1, 20_000, 2048, 0.03, 0.05)
    assert row(APD_PRESETS["tms_40_10_paper"]) == (50, 1, 1, 10, 0, 20, 0.9, 20_000, 2048, 1e-3, 0.05)
    assert row(APD_PRESETS["resid_mlp1"]) == (130, 1.28, 1, 1, 1, 10, 0.9, 10_000, 256, 1e-3, 0.01)
    assert row(APD_PRESETS["resid_mlp1_paper"]) == (130, 1.28, 1, 1, 1, 10, 0.9, 40_000, 2048, 1e-3, 0.01)
    assert APD_PRESETS["resid_mlp1_paper"].unit_norm
    assert row(APD_PRESETS["resid_mlp2"]) == (200, 1.28, 1, 2, 1, 7, 0.9, 10_000, 256, 1e-3, 0.01)
    assert row(APD_PRESETS["gated_pwl_paper"]) == (4, 0.2217, 0.1, 5, 0, 5, 1, 200_000, 10_000, 3e-3, 0.004)


def test_apd_presets_fit_their_toys():
    """Factors of every matrix, of the rank that it can have at most (TMS: one more); nothing is computed."""
    toys = {
        "tms_5_2": (lambda key: init_tms(key, TMS["5-2"]), 3),
        "resid_mlp1_paper": (lambda key: init_resid_mlp(key, RESID["1-layer"]), 50),
        "resid_mlp2": (lambda key: init_resid_mlp(key, RESID["2-layer"]), 25),
        "gated_pwl_paper": (lambda key: gated_pwl(key)[0], 6),
    }
    for name, (make, rank) in toys.items():
        config = APD_PRESETS[name]
        begin = lambda key, config=config, make=make: init_state(config, make(key))
        pairs = jax.eval_shape(begin, jax.random.key(0)).components
        assert set(pairs) == ({"linear1"} if "tms" in name else {"blocks.*.mlp.down", "blocks.*.mlp.up"})
        for pair in pairs.values():
            assert config.C * rank == pair.C
            assert rank == min(pair.V.shape[-2], pair.U.shape[-1]) + ("tms" in name)


def test_presets_fit_their_toys():
    """Every matrix that a preset names is in the toy that it is for; nothing is computed."""

    def tms(name):
        return lambda key: insert_identity(init_tms(key, TMS[name]), TMS[name].n_identity)

    toys = {
        "tms_5_2": tms("5-2"), "tms_5_2_id": tms("5-2-id"), "tms_40_10": tms("40-10"), "tms_40_10_id": tms("40-10-id"),
        "tms_5_5": lambda key: init_tms(key, TMSConfig(5, 5)),
        "resid_mlp1_merged": lambda key: init_resid_mlp(key, RESID["1-layer"]),
        "resid_mlp1": lambda key: init_resid_mlp(key, RESID["1-layer"]),
        "resid_mlp2": lambda key: init_resid_mlp(key, RESID["2-layer"]),
        "resid_mlp3": lambda key: init_resid_mlp(key, RESID["3-layer"]),
    }  # fmt: skip
    for name, make in toys.items():
        drawn = lambda key, name=name, make=make: initial_decomposition(preset(name), make(key))
        parts = jax.eval_shape(drawn, jax.random.key(0))
        tied = ("linear1", "linear2") if "tms" in name else ("blocks.*.mlp.down", "blocks.*.mlp.up")
        assert set(tied) <= set(parts.names)
        assert ("hidden_layers.0" in parts.names) == name.endswith("_id")


def test_named_runs_survive_json_and_fit_the_command():
    from jax_interp.recipes.configs import find_config, known_names
    from jax_interp.recipes.decomposition import DecompositionRunConfig

    names = known_names(DecompositionRunConfig)
    assert {"tms_5_2_spd", "tms_40_10_spd", "resid_mlp1_spd", "tms_5_2_apd"} <= set(names)
    for name in names:
        config = find_config(DecompositionRunConfig, name).config
        assert configs.from_json(DecompositionRunConfig, configs.to_json(config)) == config


@pytest.mark.parametrize(
    ("kind", "changes", "said"),
    [
        (DecompositionConfig, {"C": 0}, "C=0: a matrix has at least 1 component"),
        (DecompositionConfig, {"C": {"*": -1}}, "C=.*-1.*: a matrix has at least 1"),
        (DecompositionConfig, {"C": {}}, "C={}: a matrix has"),
        (DecompositionConfig, {"matrices": ()}, r"matrices=\(\): name at least one"),
        (DecompositionConfig, {"steps": 0}, "steps=0, batch=4096: at least 1 each"),
        (DecompositionConfig, {"clip": 0.0}, "clip=0.0: a norm above 0"),
        (Schedule, {"warm_up": 1.0}, "warm_up=1.0.*0 <= warm_up < 1"),
        (WarmUp, {"steps": -1}, "Use warm_up=None for no warm-up"),
        (APDConfig, {"top_k": 7}, "top_k=7: it must be above 0 and at most C=5"),
        (APDConfig, {"top_k": 0.0}, "top_k=0.0: it must be above 0"),
        (APDConfig, {"rank": 0}, "rank=0: at least 1"),
        (APDConfig, {"C": 0}, "C=0: at least 1"),
        (APDConfig, {"matrices": ()}, r"matrices=\(\)"),
        (APDConfig, {"steps": 0}, "steps=0: at least 1"),
        (APDConfig, {"batch": 0}, "batch=0: at least 1"),
        (APDConfig, {"activation_reconstruction": 1.0}, "1.0 without activations="),
        (APDConfig, {"activation_reconstruction": 1.0, "activations": ("hidden",), "top_k": None}, "needs a top_k"),
    ],
)
def test_configs_that_mean_nothing_are_refused(kind, changes, said):
    with pytest.raises(UserError, match=said):
        kind(**changes)
