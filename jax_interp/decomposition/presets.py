"""Published runs as configs.

The `source` of each config says what it follows: "yaml" (the configuration or the code) or "paper" (the text). They
sometimes differ; the published results come from the configuration. Matrices have the names of this package's toys:
`linear1`, `hidden_layers.0`, `blocks.*.mlp.up` (`mlp_in` in the papers), `blocks.*.mlp.down` (`mlp_out`).
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from jax_interp.core.errors import UserError
from jax_interp.decomposition.apd import APDConfig
from jax_interp.decomposition.config import DecompositionConfig, Schedule, WarmUp
from jax_interp.decomposition.importance import GlobalMLP, GlobalTransformer, ScalarMLP, SharedMLP
from jax_interp.decomposition.losses import (
    AdamAdversary,
    Faithfulness,
    ImportanceMinimality,
    MixedReconstruction,
    PersistentPGD,
    PGDReconstruction,
    SmoothL0,
    StochasticLayerwise,
    StochasticReconstruction,
    StochasticSubset,
)

TIED = (("linear1", "linear2"),)
STOCHASTIC = (StochasticReconstruction(), StochasticLayerwise())


def _toy(source: str, C: int, p: float, beta: float, steps: int, **changes) -> DecompositionConfig:
    """The 2026 settings for toys: Δ, 200 warm-up steps, stochastic losses with weight 1, a cosine schedule to 0."""
    losses = (ImportanceMinimality(beta, p=p), *STOCHASTIC)
    return replace(DecompositionConfig(C=C, losses=losses, steps=steps, source=source), **changes)


def _v1(source: str, C: int, p: float, beta: float, steps: int, rate: float, kind, **changes) -> DecompositionConfig:
    """SPD 2025: no Δ, faithfulness as a loss, sigmoids that leak forward, `init="unit"`."""
    losses = (Faithfulness(), ImportanceMinimality(beta, p=p, eps=0.0), *STOCHASTIC)
    config = DecompositionConfig(
        C=C, init="unit", sigmoid="leaky_hard_v1", delta=False, warm_up=None, losses=losses, steps=steps,
        schedule=Schedule(rate, kind), source=source,
    )  # fmt: skip
    return replace(config, **changes)


_TMS = {"matrices": ("linear1",), "tied": TIED}
_TMS_ID = {"matrices": ("linear1", "hidden_layers.0"), "tied": TIED}
_RESID = {"matrices": ("blocks.*.mlp",), "batch": 2048}
_YAML = "yaml: toy configurations of 2026-06"
_SPD_YAML, _SPD_PAPER = "yaml: SPD 2025, tag v1", "paper: SPD 2025"
_VPD = "yaml: VPD 2026"
_JAX_LINE = "yaml: the 2026 JAX line"
_TIED_HERE = "V and U tied as the target is, which theirs are not"


def _merged(C: int, hidden: int, minimality: float, steps: int, rate: float, **changes) -> DecompositionConfig:
    """The 2026 JAX code: smooth L0 with a frequency penalty of half the weight, and `MixedReconstruction` with subsets
    and an adversary that has separate sources for each row of the batch."""
    config = DecompositionConfig(
        C=C, importance=SharedMLP((hidden,)), warm_up=WarmUp(200, 0.01, 0.0),
        losses=(
            Faithfulness(1.0, relative=True),
            SmoothL0(minimality, frequency=0.5, reference=32_768),
            MixedReconstruction(1.0, 0.5, AdamAdversary("per_batch_per_position", b1=0.01, b2=0.99), subset=True),
        ),
        steps=steps, schedule=Schedule(rate, "cosine", final=0.1), clip=1.0, importance_clip=1.0, source=_JAX_LINE,
    )  # fmt: skip
    return replace(config, **changes)


def _vpd(C: dict[str, int], ci_fn: GlobalTransformer, rate: float, minimality: float) -> DecompositionConfig:
    return DecompositionConfig(
        matrices=("blocks.*.attn", "blocks.*.mlp"), C=C, importance=ci_fn, warm_up=WarmUp(400, 1e-3, 0.0),
        losses=(
            ImportanceMinimality(minimality, p=2.0, p_final=0.4, frequency=0.5),
            StochasticSubset(0.5),
            PersistentPGD(0.5),
            Faithfulness(1e7),
        ),
        compare="kl", steps=400_000, batch=64, schedule=Schedule(rate, "cosine", final=0.1), clip=0.01, remat=True,
        source=_VPD,
    )  # fmt: skip


PRESETS: dict[str, DecompositionConfig] = {
    "tms_5_2": _toy(_YAML, 20, 1.0, 3e-3, 10_000, **_TMS),
    "tms_5_2_id": _toy(_YAML, 20, 1.0, 3e-3, 10_000, **_TMS_ID),
    "tms_40_10": _toy(_YAML, 200, 2.0, 1e-4, 10_000, **_TMS),
    "tms_40_10_id": _toy(_YAML, 200, 2.0, 1e-4, 20_000, **_TMS_ID),
    "resid_mlp1": _toy(_YAML, 100, 2.0, 1e-5, 20_000, **_RESID, schedule=Schedule(2e-3, "constant")),
    "resid_mlp1_global": _toy(_YAML, 100, 2.0, 1e-5, 20_000, **_RESID, importance=GlobalMLP((400, 300)),
                              schedule=Schedule(2e-3, "constant")),
    "resid_mlp2": _toy(
        _YAML, 400, 2.0, 1e-4, 25_000, **_RESID, importance=SharedMLP((256,)), schedule=Schedule(3e-4),
        losses=(
            ImportanceMinimality(1e-4, p=2.0),
            StochasticSubset(2.0),
            PGDReconstruction(2.0, steps=1, step_size=1.0, subset=True),
        ),
    ),
    "resid_mlp3": _toy(_YAML, 500, 2.0, 1e-5, 50_000, **_RESID, importance=ScalarMLP(128)),
    "tms_5_2_v1": _v1(_SPD_YAML, 20, 1.0, 3e-3, 40_000, 1e-3, "quarter_cosine", **_TMS),
    "tms_5_2_id_v1": _v1(_SPD_YAML, 20, 1.0, 3e-3, 40_000, 1e-3, "quarter_cosine", **_TMS_ID),
    "tms_40_10_v1": _v1(_SPD_YAML, 200, 2.0, 1e-4, 40_000, 1e-3, "quarter_cosine", **_TMS),
    "tms_40_10_id_v1": _v1(_SPD_YAML, 200, 2.0, 1e-4, 40_000, 1e-3, "quarter_cosine", **_TMS_ID),
    "resid_mlp1_v1": _v1(_SPD_YAML, 100, 2.0, 1e-5, 30_000, 2e-3, "constant", **_RESID),
    "resid_mlp2_v1": _v1(_SPD_YAML, 400, 2.0, 2e-5, 50_000, 1e-3, "quarter_cosine", **_RESID),
    "resid_mlp2_v1_paper": _v1(_SPD_PAPER, 400, 2.0, 1e-5, 50_000, 1e-3, "quarter_cosine", **_RESID),
    "resid_mlp3_v1": _v1(_SPD_YAML, 500, 2.0, 5e-6, 100_000, 1e-3, "quarter_cosine", **_RESID,
                         importance=ScalarMLP(128)),
    "resid_mlp3_v1_paper": _v1(_SPD_PAPER, 500, 2.0, 5e-6, 200_000, 1e-3, "constant", **_RESID,
                               importance=ScalarMLP(128)),
    "tms_5_2_merged": _merged(20, 50, 8e-4, 20_000, 1e-3, **_TMS, source=f"{_JAX_LINE}; {_TIED_HERE}"),
    "resid_mlp1_merged": _merged(200, 400, 1e-6, 50_000, 2e-3, **_RESID),
    "tms_5_5": DecompositionConfig(  # from the tests of the 2026 JAX code
        **_TMS, C=5, importance=SharedMLP((16,)), warm_up=WarmUp(150, 0.01, 0.0),
        losses=(Faithfulness(1.0, relative=True), ImportanceMinimality(3e-3, p=1.0), *STOCHASTIC),
        steps=3_000, batch=2048, schedule=Schedule(1e-3, "constant"), clip=0.01,
        source=f"{_JAX_LINE}, its own test; {_TIED_HERE}",
    ),
    "pile_4l": _vpd(
        {"*.mlp.up": 3072, "*.mlp.down": 3584, "*.attn.[qk]": 512, "*": 1024},
        GlobalTransformer(2048, 8, 16, 8192, remat=True), 5e-5, 2e-4,
    ),
    "simplestories_2l": _vpd(
        {"*.mlp.up": 1152, "*.mlp.down": 960, "*.attn.[qk]": 288, "*.attn.v": 384, "*": 480},
        GlobalTransformer(512, 4, 8, 2048, remat=True), 3e-4, 1e-3,
    ),
}  # fmt: skip

_APD_YAML, _APD_PAPER = "yaml: APD 2025", "paper: APD 2025"
_APD_RESID: dict[str, Any] = {
    "matrices": ("blocks.*.mlp",),
    "p": 0.9,
    "activations": ("blocks.*.mlp.post",),
    "activation_reconstruction": 1.0,
    "init_scale": 2.0,
    "steps": 10_000,
    "batch": 256,
    "schedule": Schedule(1e-3, "quarter_cosine", warm_up=0.01),
}

_APD_RESID1: dict[str, Any] = {"C": 130, "rank": 50, "top_k": 1.28, "simplicity": 10.0, "unit_norm": True}

APD_PRESETS: dict[str, APDConfig] = {
    "tms_5_2": APDConfig(tied=TIED, source=_APD_PAPER),
    "tms_40_10": APDConfig(tied=TIED, C=40, rank=11, top_k=2.0, top_k_reconstruction=10.0, simplicity=15.0, p=0.9,
                           schedule=Schedule(1e-3, "quarter_cosine", warm_up=0.05), source=_APD_YAML),
    "tms_40_10_paper": APDConfig(tied=TIED, C=50, rank=11, top_k=1.0, top_k_reconstruction=10.0, simplicity=20.0,
                                 p=0.9, schedule=Schedule(1e-3, "quarter_cosine", warm_up=0.05),
                                 source=_APD_PAPER),
    "resid_mlp1": APDConfig(**_APD_RESID, **_APD_RESID1, source=_APD_YAML),
    "resid_mlp1_paper": APDConfig(**_APD_RESID | {"steps": 40_000, "batch": 2048}, **_APD_RESID1, source=_APD_PAPER),
    "resid_mlp2": APDConfig(**_APD_RESID, C=200, rank=25, top_k=1.28, top_k_reconstruction=2.0, simplicity=7.0,
                            source=_APD_YAML),
    "gated_pwl_paper": APDConfig(matrices=("blocks.*.mlp",), C=4, rank=6, top_k=0.2217, parameter_match=0.1,
                                 top_k_reconstruction=5.0, simplicity=5.0, steps=200_000, batch=10_000,
                                 schedule=Schedule(3e-3, "quarter_cosine", warm_up=0.004), source=_APD_PAPER),
}  # fmt: skip


def preset(name: str) -> DecompositionConfig:
    """A published run of SPD or a successor by name. Raises UserError with all names."""
    if name not in PRESETS:
        raise UserError(f"there is no decomposition preset {name!r}: {', '.join(PRESETS)}")
    return PRESETS[name]
