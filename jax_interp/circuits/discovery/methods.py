"""Scores of edges by the name of a method, with one sign: large and positive for an edge that carries the behaviour."""

from __future__ import annotations

import dataclasses
from typing import Literal, get_args

import numpy as np
from jaxtyping import Float

from jax_interp.circuits.contrast import Contrast
from jax_interp.circuits.discovery.acdc import acdc
from jax_interp.circuits.discovery.importance import importance
from jax_interp.circuits.discovery.pruning import PruningConfig, prune_by_masks
from jax_interp.circuits.discovery.selection import random_ranks
from jax_interp.circuits.discovery.units import EdgeUnits
from jax_interp.circuits.edges import EAP, EAPIG, CleanCorrupted, EdgeMethod, IGActivations, edge_scores
from jax_interp.core.errors import UserError
from jax_interp.core.processes import on_host
from jax_interp.surgery.contract import Model

Method = Literal[
    "eap", "eap-ig", "ig-activations", "clean-corrupted", "importance", "acdc", "edge-pruning", "random"
]  # fmt: skip


@dataclasses.dataclass(frozen=True)
class MethodOptions:
    """What the methods need. Each reads its own fields."""

    steps: int = 5
    """eap-ig, ig-activations, and the warm start of edge-pruning: the number of points of the integral."""
    thresholds: tuple[float, ...] = (0.0001, 0.001, 0.01, 0.1, 1.0)
    """acdc: the thresholds τ. The score of an edge is the share of them at which it is kept."""
    loss: Literal["kl", "metric"] = "kl"
    """acdc, edge-pruning: what is kept low."""
    together: bool = True
    """acdc: all thresholds at once, which is faster and needs more memory."""
    pruning: PruningConfig = dataclasses.field(default_factory=PruningConfig)
    """edge-pruning: the training of the masks."""
    target: float = 0.02
    """edge-pruning: the share of the edges to keep."""
    warm_start: bool = True
    """edge-pruning: start from the scores of EAP-IG."""
    prompts_at_once: int = 8
    """eap, eap-ig, ig-activations, clean-corrupted: how many prompts run together. It bounds the memory."""


def find_edges(
    method: Method, model: Model, contrast: Contrast, units: EdgeUnits, options: MethodOptions = MethodOptions(),
    *, seed: int = 0,
) -> Float[np.ndarray, " unit"]:  # fmt: skip
    """Score the edges of a model by one method.

    Args:
      method: its name.
      model: the model.
      contrast: the prompts and the metric.
      units: the edges.
      options: the settings of the methods.
      seed: the seed of edge-pruning and random.

    Returns:
      One score for each edge. The attribution methods of `circuits.edges` estimate the change of the metric when an
      edge is ablated; here it has the opposite sign, so that the order "signed" takes the edges that help.

    Raises:
      UserError: there is no such method.
    """
    attribution: dict[str, EdgeMethod] = {
        "eap": EAP(), "eap-ig": EAPIG(options.steps), "ig-activations": IGActivations(options.steps),
        "clean-corrupted": CleanCorrupted(),
    }  # fmt: skip
    if method in attribution:
        found = edge_scores(model, contrast, attribution[method], graph=units.graph,
                            prompts_at_once=options.prompts_at_once)  # fmt: skip
        return -units.flat(np.asarray(on_host(found.mean), float))
    if method == "importance":
        return importance(model, contrast, units)
    if method == "acdc":
        return acdc(model, contrast, units, options.thresholds, loss=options.loss, together=options.together).scores
    if method == "edge-pruning":
        start = find_edges("eap-ig", model, contrast, units, options) if options.warm_start else None
        config = dataclasses.replace(options.pruning, loss=options.loss)
        scores = prune_by_masks(model, contrast, units, [options.target], config, start=start, seed=seed).scores[0]
        return scores - scores.min()  # log α, moved so that |score| has the same order
    if method == "random":
        return 1.0 - random_ranks(units, seed) / len(units)
    raise UserError(f"method={method!r}: choose one of {', '.join(get_args(Method))}")
