"""Ten training steps of different kinds with their meshes of eight devices, for checks of plans."""

from __future__ import annotations

import jax
import jax.numpy as jnp

from jax_interp.dashboards import collector
from jax_interp.dashboards.collect_features import page_statistics
from jax_interp.dashboards.form_latents import scores_of
from jax_interp.dashboards.options import PageOptions
from jax_interp.decomposition.config import DecompositionConfig
from jax_interp.decomposition.train import SPD
from jax_interp.dictionaries import sharding, variants
from jax_interp.dictionaries.training import cross_layer, end_to_end, sweep, train
from jax_interp.dictionaries.training.config import EndToEndSAEConfig
from jax_interp.models import language_modelling
from jax_interp.models.hf import load_shapes
from jax_interp.models.sharding import rules_for
from jax_interp.surgery import replan
from jax_interp.training.planning.planned import PlannedStep, token_batch

RESID, INPUT, OUTPUT = "blocks.2.resid_post", "blocks.2.ln2.normalized", "blocks.2.mlp_out"
BATCH = token_batch(16, 256)
SIZES = {"n_features": 4096, "steps": 1000}


def dictionary(config) -> PlannedStep:
    return train.planned(config, load_shapes("stdlib-small"), BATCH)


def clt() -> PlannedStep:
    reads, writes = (tuple(f"blocks.{i}.{name}" for i in range(4)) for name in ("ln2.normalized", "mlp_out"))
    config = variants.batch_topk_cross_layer(reads, writes, k=16, n_features=2048, steps=1000)
    return cross_layer.planned(config, load_shapes("stdlib-small"), BATCH)


def grid() -> PlannedStep:
    of_grid = sweep.Sweep(seeds=(0, 1), coefficients={"l1": (0.004, 0.008)})
    config = variants.relu(RESID, n_features=2048, steps=1000)
    return sweep.planned(config, of_grid, load_shapes("stdlib-small"), BATCH, batched=False)


def end_to_end_sae() -> PlannedStep:
    sae = EndToEndSAEConfig.of(variants.relu(RESID, n_features=4096))
    config = end_to_end.EndToEndConfig((sae,), steps=1000, downstream=("blocks.3.resid_post",))
    return end_to_end.planned(
        config, jax.eval_shape(lambda model: replan(model, 2), load_shapes("stdlib-small")), BATCH
    )


def language_model() -> PlannedStep:
    return language_modelling.planned(load_shapes("stdlib-small"), language_modelling.Optimization(), 1000, 16, 256)


def spd() -> PlannedStep:
    config = DecompositionConfig(matrices=("blocks.*.mlp.up", "blocks.*.mlp.down"), C=512, steps=1000, batch=16)
    tokens = jax.ShapeDtypeStruct((16, 64), jnp.int32)
    return SPD.planned(config, load_shapes("stdlib-small"), tokens, 16 * 64)


def feature_pass() -> PlannedStep:
    model = load_shapes("stdlib-small")
    sae = dictionary(variants.topk(RESID, k=32, **SIZES)).state.learner.dictionary
    scores = scores_of(sae, RESID)
    given = (scores, sharding.rules(scores)), (model, rules_for(model))
    return collector.planned(*given, BATCH, page_statistics(PageOptions()), 100)


CASES = {
    "TopK": lambda: dictionary(variants.topk(RESID, k=32, **SIZES)),
    "BatchTopK": lambda: dictionary(variants.batch_topk(RESID, k=32, **SIZES)),
    "JumpReLU": lambda: dictionary(variants.jumprelu(RESID, **SIZES)),
    "transcoder": lambda: dictionary(variants.topk(INPUT, k=32, **SIZES).with_fields(writes=OUTPUT)),
    "cross-layer transcoder": clt,
    "sweep of four": grid,
    "end to end": end_to_end_sae,
    "language model": language_model,
    "SPD": spd,
    "feature pass": feature_pass,
}
MESHES = {
    "TopK": {"data": 2, "fsdp": 2, "tensor": 2},
    "BatchTopK": {"data": 4, "tensor": 2},
    "JumpReLU": {"fsdp": 4, "tensor": 2},
    "transcoder": {"fsdp": 2, "tensor": 4},
    "cross-layer transcoder": {"data": 2, "fsdp": 2, "tensor": 2},
    "sweep of four": {"data": 8},
    "end to end": {"data": 4, "tensor": 2},
    "language model": {"data": 2, "fsdp": 2, "tensor": 2},
    "SPD": {"data": 4, "fsdp": 2},
    "feature pass": {"data": 2, "tensor": 4},
}
