"""Edges between the nodes of a feature circuit (Marks et al. 2024, arXiv:2403.19647, §3.1 and appendix A).

The weight of an edge u -> d is the effect of ablating u on the metric that goes directly to d and through d:

    weight(u -> d) = ∇_d m · (∂d/∂u with every other site held at its clean value) · (u_ablated - u_clean)

Here ∇_d m is the gradient of the metric at the clean run. Paths through other sites are not counted: they belong to the
edges of these sites. So the weights of all edges that leave a node, over all latents and errors of later sites and the
metric, add up to its effect by attribution.

Holding all sites at once makes this one program. Each site writes a value that is given, and the values that arrive at
the sites are functions of the given ones; their Jacobian holds every direct effect. One product with its transpose
gives the edges from all nodes into one node. Targets that have no source site in common share a product.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int

from jax_interp.circuits.contrast import Contrast
from jax_interp.circuits.feature_circuits.circuit import FeatureCircuit
from jax_interp.circuits.feature_circuits.effects import batches, mean_and_spread
from jax_interp.circuits.feature_circuits.sites import (
    ERROR,
    Ablation,
    Sites,
    change,
    clean_run,
    contracted,
    corrupted_values,
    feature_sites,
    latents_of,
    pulled_back,
    run_with_values,
    value_types,
    written,
)
from jax_interp.core.errors import UserError
from jax_interp.core.pytrees import register_dataclass
from jax_interp.dictionaries.sparse_coder import EncoderDecoder, SparseCoder
from jax_interp.surgery import Replace
from jax_interp.surgery.contract import Model
from jax_interp.surgery.value_tokens import wide
from jax_interp.surgery.verbs import without_reads

NOTHING = -2
"""In place of the number of a feature: this site is not a target of the job."""


@register_dataclass
@dataclasses.dataclass(frozen=True)
class _Nodes:
    """The nodes of one site."""

    feature: Int[Array | np.ndarray, " node"]
    pos: Int[Array | np.ndarray, " node"]


@register_dataclass
@dataclasses.dataclass(frozen=True)
class _Jobs:
    """Products to compute. In one job, each site is the target with at most one of its nodes."""

    feature: Int[Array | np.ndarray, "job site"]
    pos: Int[Array | np.ndarray, "job site"]
    metric: Bool[Array | np.ndarray, " job"]


def feature_edges(
    model: Model,
    contrast: Contrast,
    dictionaries: Mapping[str, EncoderDecoder],
    circuit: FeatureCircuit,
    *,
    threshold: float = 0.0,
    batch: int = 16,
    targets: int = 16,
) -> FeatureCircuit:
    """Find the edges between the nodes of a circuit, and from the nodes to the metric.

    Args:
      model: the model with which the nodes were found.
      contrast: the prompts and the metric.
      dictionaries: the dictionaries with which the nodes were found.
      circuit: the nodes, from `select_nodes`. Edges that it has are replaced.
      threshold: keep edges with |weight| > threshold, the mean over prompts.
      batch: prompts in one program.
      targets: products in one program. Memory grows with `batch` × `targets`.

    Returns:
      The circuit with its edges.

    Raises:
      UserError: the dictionaries are not those of the circuit, or a weight is not finite.

    Example:
        nodes = select_nodes(feature_effects(model, contrast, saes), threshold=0.1)
        circuit = feature_edges(model, contrast, saes, nodes, threshold=0.01)
    """
    sites = matching_sites(model, contrast, dictionaries, circuit)
    plain = without_reads(model)
    numbers = [np.flatnonzero(circuit.site == i) for i in range(len(sites))]
    nodes = [_Nodes(circuit.feature[rows], circuit.pos[rows]) for rows in numbers]
    shape = (circuit.n_nodes + 1, circuit.n_nodes)
    total, squares = np.zeros(shape), np.zeros(shape)
    for part in batches(contrast, batch):
        prepared = _prepare(plain, part, sites, circuit.ablation)
        reaches = np.asarray(_reaches(plain, part, sites, prepared.values, jax.random.key(0)))
        jobs, owners = _schedule(numbers, nodes, reaches)
        for start in range(0, len(owners), targets):
            chunk = jax.tree.map(lambda a, s=start: _padded(a[s : s + targets], targets), jobs)
            found = _products(plain, part, sites, prepared, nodes, chunk)
            _add(found, owners[start : start + targets], numbers, reaches, total, squares)
    mean, spread = mean_and_spread(total, squares, contrast.clean.shape[0])
    if not np.isfinite(mean).all():
        raise UserError("weights of edges are not finite: look for NaN in the model, the metric and the dictionaries")
    target, source = np.nonzero(np.abs(mean) > threshold)
    weights = {"weight": mean[target, source], "weight_spread": spread[target, source]}
    return dataclasses.replace(circuit, source=source, target=target, **weights)


def matching_sites(
    model: Model, contrast: Contrast, dictionaries: Mapping[str, EncoderDecoder], *circuits: FeatureCircuit
) -> Sites:
    """The sites of the dictionaries. Raises UserError if they are not those of the circuits."""
    sites = feature_sites(model, contrast, dictionaries)
    types = value_types(without_reads(model), contrast, sites)
    shapes = [jax.eval_shape(latents_of, coder, x) for coder, x in zip(sites.coders, types, strict=True)]
    widths, length = tuple(s.shape[-1] for s in shapes), contrast.clean.shape[1]
    for circuit in circuits:
        if (sites.addresses, widths) != (circuit.addresses, circuit.widths):
            raise UserError(
                f"the circuit has the values {', '.join(circuit.addresses)} with {circuit.widths} latents, the "
                f"dictionaries {', '.join(sites.addresses)} with {widths}: give those with which it was found"
            )
        if circuit.n_nodes and circuit.pos.max() >= length:
            raise UserError(
                f"the circuit has a node at position {circuit.pos.max()}, the prompts have {length} positions"
            )
    return sites


@register_dataclass
@dataclasses.dataclass(frozen=True)
class _Prepared:
    """What all products of a batch use. Lists are by site."""

    values: list[Array]
    gradients: list[Array]
    latents_change: list[Float[Array, "prompt pos feature"]]
    error_change: list[Float[Array, "prompt pos ..."]]


@partial(jax.jit, static_argnames="ablation")
def _prepare(model: Model, contrast: Contrast, sites: Sites, ablation: Ablation) -> _Prepared:
    _, values, gradients = clean_run(model, contrast, sites)
    others = corrupted_values(model, contrast, sites, ablation)
    moved = [change(c, x, o, contrast.mask) for c, x, o in zip(sites.coders, values, others, strict=True)]
    return _Prepared(values, gradients, [c.latents for c in moved], [c.error for c in moved])


def _held(model: Model, contrast: Contrast, sites: Sites, values: Sequence[Array]) -> tuple[list[Array], Array]:
    """(the values that arrive at the sites, the metric of each prompt), if each site writes its entry of `values`."""
    logits, arrived = run_with_values(model, contrast.clean, contrast, sites, sites.edits(Replace, values))
    return arrived, contrast.metric(logits)


@jax.jit
def _reaches(
    model: Model, contrast: Contrast, sites: Sites, values: list[Array], key: Array
) -> Bool[Array, "target source"]:
    """Whether the value of a source reaches that of a target, or the metric (the last row), without other sites.

    This is found by a product with random numbers: it is exactly 0 only if the Jacobian is.
    """
    (arrived, metric), pull = jax.vjp(partial(_held, model, contrast, sites), values)
    found = []
    for target in range(len(values) + 1):
        keys = jax.random.split(jax.random.fold_in(key, target), len(values) + 1)
        draw = lambda x, i, t=target, keys=keys: (
            jax.random.normal(keys[i], x.shape, jnp.float32).astype(x.dtype) if i == t else jnp.zeros_like(x)
        )
        cotangents = [draw(x, i) for i, x in enumerate(arrived)]
        (gradients,) = pull((cotangents, draw(metric, len(values))))
        found.append(jnp.stack([jnp.any(g != 0) for g in gradients]))
    return jnp.stack(found)


def _schedule(
    numbers: Sequence[np.ndarray], nodes: Sequence[_Nodes], reaches: Bool[np.ndarray, "target source"]
) -> tuple[_Jobs, list[list[tuple[int, int]]]]:
    """Put targets together that have no source in common.

    Returns:
      The jobs; and for each job its targets, as (site, number of the node). The site of the metric is the last.
    """
    n = len(numbers)
    queues = {site: list(zip(numbers[site], nodes[site].feature, nodes[site].pos)) for site in range(n)}
    queues[n] = [(sum(map(len, numbers)), 0, 0)]
    queues = {site: queue for site, queue in queues.items() if reaches[site].any()}
    feature, pos, metric, owners = [], [], [], []
    while any(queues.values()):
        taken, row = np.zeros(n, bool), []
        job = np.full((2, n), NOTHING)
        for site in sorted(queues, key=lambda s: -len(queues[s])):
            if queues[site] and not (taken & reaches[site]).any():
                node, f, p = queues[site].pop()
                taken |= reaches[site]
                row.append((site, int(node)))
                if site < n:
                    job[:, site] = f, p
        feature.append(job[0])
        pos.append(job[1])
        metric.append(any(site == n for site, _ in row))
        owners.append(row)
    shape = (len(owners), n)
    return _Jobs(np.reshape(feature, shape), np.reshape(pos, shape), np.asarray(metric, bool)), owners


def _padded(a: np.ndarray, size: int) -> np.ndarray:
    return np.concatenate([a, np.repeat(a[:1], size - len(a), axis=0)])


@jax.jit
def _products(
    model: Model, contrast: Contrast, sites: Sites, prepared: _Prepared, nodes: list[_Nodes], jobs: _Jobs
) -> list[Float[Array, "job prompt node"]]:
    """For each site, the direct effect of its nodes through the targets of each job."""
    (_, metric), pull = jax.vjp(partial(_held, model, contrast, sites), prepared.values)
    towards = [
        jax.vmap(partial(_arriving, coder, x, g))(jnp.asarray(jobs.feature)[:, i], jnp.asarray(jobs.pos)[:, i])
        for i, (coder, x, g) in enumerate(zip(sites.coders, prepared.values, prepared.gradients, strict=True))
    ]
    of_metric = jnp.broadcast_to(jobs.metric[:, None], (len(jobs.metric), metric.shape[0])).astype(metric.dtype)
    (gradients,) = jax.vmap(pull)((towards, of_metric))
    found = []
    for i, coder in enumerate(sites.coders):
        by_latent = _of_latents(coder, prepared.values[i], wide(gradients[i]), prepared.latents_change[i], nodes[i])
        by_error = contracted(wide(gradients[i]), prepared.error_change[i])[..., None]
        is_error = jnp.asarray(nodes[i].feature == ERROR)[None, None, None, :]
        by_token = jnp.where(is_error, by_error, by_latent)
        pos, length = jnp.asarray(nodes[i].pos)[None, :], by_token.shape[2]
        here = ((pos == jnp.arange(length)[:, None]) | (pos < 0))[None, None]
        found.append(jnp.sum(jnp.where(here, by_token, jnp.zeros_like(by_token)), axis=2))
    return found


def _arriving(
    coder: SparseCoder, x: Array, gradient: Array, feature: Int[Array, ""], pos: Int[Array, ""]
) -> Float[Array, "prompt pos ..."]:
    """The gradient with respect to the value that arrives at a target, of ∇_d m · d for one node d."""

    def node(x: Array) -> Float[Array, ""]:
        latents = latents_of(coder, x)
        here = (pos < 0) | (jnp.arange(x.shape[1]) == pos)
        one = (jnp.arange(latents.shape[-1]) == feature)[None, None, :] & here[None, :, None]
        of_latents = pulled_back(coder, jax.lax.stop_gradient(x), gradient)
        of_latent = jnp.sum(jnp.where(one, of_latents * latents, jnp.zeros_like(latents)))
        of_tokens = contracted(gradient, wide(x) - written(coder, x, latents))
        of_error = jnp.sum(jnp.where(here[None, :], of_tokens, jnp.zeros_like(of_tokens)))
        zero = jnp.zeros_like(of_error)
        return jnp.where(feature == ERROR, of_error, zero) + jnp.where(feature >= 0, of_latent, zero)

    return jax.grad(node)(x)


def _of_latents(
    coder: SparseCoder, x: Array, gradients: Array, moved: Float[Array, "prompt pos feature"], nodes: _Nodes
) -> Float[Array, "job prompt pos node"]:
    """gradient · what each node's latent writes · the change of the latent."""
    moved = jnp.take(moved, nodes.feature, axis=-1)[
        None
    ]  # -1, the error, takes the last latent; its result is not used
    directions = coder.directions() if coder.decodes_alone() else None
    if directions is None:
        of_all = jax.lax.map(lambda g: pulled_back(coder, x, g), gradients)
        return jnp.take(of_all, nodes.feature, axis=-1) * moved
    rows = jnp.take(directions, nodes.feature, axis=0).astype(gradients.dtype)
    flat = gradients.reshape(*gradients.shape[:3], -1)
    return jnp.einsum("kbtd,nd->kbtn", flat, rows, precision=jax.lax.Precision.HIGHEST) * moved


def _add(
    found: list[Array],
    owners: list[list[tuple[int, int]]],
    numbers: Sequence[np.ndarray],
    reaches: Bool[np.ndarray, "target source"],
    total: np.ndarray,
    squares: np.ndarray,
) -> None:
    """Add Σ and Σ of squares over prompts to the rows of the targets. A source belongs to the one target it reaches."""
    for source, products in enumerate(found):
        per_prompt = np.asarray(products, np.float64)
        for job, targets in enumerate(owners):
            for site, node in targets:
                if reaches[site, source]:
                    total[node, numbers[source]] += per_prompt[job].sum(axis=0)
                    squares[node, numbers[source]] += (per_prompt[job] ** 2).sum(axis=0)
