"""APD finds the features of a toy model of superposition and shrinks them; with some seeds it finds another solution.

Attribution-based parameter decomposition (Braun, Bushnaq, Heimersheim, Mendel & Sharkey 2025, arXiv 2501.14926) of TMS
5-2 with the paper's settings and 8,000 of its 20,000 steps. Each of five components should be one feature, with the
right direction (MMCS .998) and a smaller norm (ML2R .893), because the simplicity loss penalises norms. With some other
seeds several components share a feature. This is another minimum of the same losses, and more steps do not leave it.
"""

from __future__ import annotations

import dataclasses
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from experiments.experiment import Results, Row
from jax_interp.decomposition.apd import apd_instances
from jax_interp.decomposition.apd.losses import apd_losses
from jax_interp.decomposition.components import Decomposed
from jax_interp.decomposition.metrics import recovery
from jax_interp.decomposition.presets import APD_PRESETS
from jax_interp.toys.tms import tms_target
from jax_interp.toys.toy_training import sparse_features
from jax_interp.training import QUIET
from jax_interp.views.style import BLUE, INK, ORANGE, canvas, fading, styled


@dataclasses.dataclass(frozen=True)
class Config:
    seeds: tuple[int, ...] = tuple(range(10))
    steps: int = 8000


QUICK = Config((0, 1), 1000)


def run(config: Config) -> Results:
    target = tms_target("5-2")
    settings = dataclasses.replace(APD_PRESETS["tms_5_2"], steps=config.steps)
    draw = partial(sparse_features, batch=settings.batch, n=5, probability=0.05)
    pair = apd_instances(settings, target, seeds=config.seeds, sample=draw, log=QUIET)["linear1"]
    V = pair.V.reshape(-1, 5, settings.C, settings.rank)
    U = pair.U.reshape(-1, settings.C, settings.rank, 2)
    parts = jnp.einsum("sfcm,scmd->scfd", V, U)
    found = [recovery(one, target.linear1.weight) for one in parts]
    x = sparse_features(jax.random.key(99), 1 << 16, 5, 0.05)
    total = lambda pair: apd_losses(settings, Decomposed(target, {"linear1": pair}, settings.tied), x)[0]
    loss = np.asarray(jax.lax.map(total, pair))
    mmcs, ml2r = (np.array([float(getattr(run, name)) for run in found]) for name in ("mmcs", "ml2r"))
    right = mmcs > 0.995
    span = lambda values, form: f"{min(values):{form}} to {max(values):{form}}" if len(values) else "-"
    both = lambda values, form: f"{span(values[right], form)} ({span(values[~right], form)})"
    rows = (
        Row("TMS 5-2: runs with a component for each feature", f"{right.sum()} / {len(right)}", "all",
            bool(right.all())),
        Row("MMCS, those runs (the others)", both(mmcs, ".4f"), "0.998 ± 0.000", bool(right.any())),
        Row("ML2R, those runs (the others)", both(ml2r, ".3f"), "0.893 ± 0.004",
            bool(right.any() and abs(ml2r[right].mean() - 0.893) < 0.015)),
        Row("loss, those runs (the others)", both(loss, ".5f")),
    )  # fmt: skip
    size = jnp.linalg.norm(parts, axis=-1) / jnp.linalg.norm(target.linear1.weight, axis=-1)[None, None]
    shown = {"a component for each feature": np.flatnonzero(right)[:1], "another minimum": np.flatnonzero(~right)[:1]}
    order = lambda norms: norms[np.argsort(np.argmax(norms, axis=1), kind="stable")]
    data = {
        "parts": {title: order(np.asarray(size[i])) for title, which in shown.items() for i in which},
        "mmcs": mmcs, "ml2r": ml2r, "loss": loss,
    }  # fmt: skip
    return Results(rows, data)


@styled
def figure(data: dict[str, Any]) -> Any:
    parts = data["parts"]
    drawn, panels = canvas(2.8 * len(parts) + 3.8, 3.0, len(parts) + 1, width_ratios=[1.0] * len(parts) + [1.2])
    for axes, (title, norms) in zip(panels, parts.items()):
        mesh = axes.pcolormesh(np.asarray(norms), cmap=fading(BLUE), vmin=0, vmax=1)
        axes.grid(False)
        axes.invert_yaxis()
        axes.set(title=title.capitalize(), xlabel="feature", ylabel="component")
        axes.locator_params(integer=True)
    if parts:
        drawn.colorbar(mesh, ax=panels[len(parts) - 1]).set_label("norm / feature's norm", color=INK)
    mmcs, loss = np.asarray(data["mmcs"]), np.asarray(data["loss"])
    right = mmcs > 0.995
    for which, color, label in ((right, BLUE, "a component for each"), (~right, ORANGE, "another minimum")):
        panels[-1].plot(loss[which], mmcs[which], "o", color=color, label=label)
    panels[-1].set(title="Every run", xlabel="loss", ylabel="MMCS")
    panels[-1].locator_params(axis="x", nbins=4)
    panels[-1].legend(loc="best")
    return drawn
