"""`edge_scores`: a score for each edge of a graph, by one of several methods, with its spread over prompts.

    scores = edge_scores(model, contrast, EAP())
    scores.circuit(200)                          the 200 edges of largest absolute score
    edge_scores(model, contrast, EAPIG(steps=5)).largest(10)

Signs: a score is the (estimated) effect of ablating an edge on the metric, m(edge ablated) - m(clean). An edge that
carries the behaviour has a negative score if the metric is large in clean runs. The code of EAP-IG differentiates a
loss, which is minus such a metric, so its scores have the opposite sign for the same behaviour. Information-flow routes
have no sign: they are shares of a sum.
"""

from __future__ import annotations

import abc
import dataclasses
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int

from jax_interp.circuits.contrast import Contrast
from jax_interp.circuits.graph import Circuit, Graph, residual_graph
from jax_interp.core.errors import UserError
from jax_interp.core.labelled import Labelled
from jax_interp.core.processes import on_host
from jax_interp.core.pytrees import register_dataclass
from jax_interp.core.registry import Registry
from jax_interp.surgery import Activations
from jax_interp.surgery.contract import Model


class EdgeMethod(abc.ABC):
    """Base class of methods: a frozen dataclass of static choices, registered with `METHODS`."""

    @abc.abstractmethod
    def scores(
        self, model: Model, contrast: Contrast, graph: Graph, ablated: Activations | None
    ) -> Float[Array, "prompt target source"]:
        """The score of each edge for each prompt. All prompts of `contrast` run together. It is traced.

        Entries without an edge are arbitrary. `ablated` is what an ablated edge carries; None: the corrupted values.
        """


METHODS: Registry[EdgeMethod] = Registry("method of edge scores", EdgeMethod)


@register_dataclass
@dataclasses.dataclass(frozen=True)
class EdgeScores:
    """The score of each edge. Entries without an edge are 0.

    Args:
      mean: the mean over the prompts.
      variance: the variance over the prompts (n - 1 in the denominator); NaN for one prompt.
      n_prompts: the number of prompts.
      graph: the graph.
    """

    mean: Float[Array, "target source"]
    variance: Float[Array, "target source"]
    n_prompts: int = dataclasses.field(metadata={"static": True})
    graph: Graph = dataclasses.field(metadata={"static": True})

    @property
    def standard_error(self) -> Float[Array, "target source"]:
        """The standard error of the mean over prompts."""
        return jnp.sqrt(self.variance / self.n_prompts)

    def circuit(self, n: int | Int[Array, ""], *, absolute: bool = True) -> Circuit:
        """The n edges of largest (absolute) score. `n` can be traced."""
        return Circuit.largest(self.graph, self.mean, n, absolute=absolute)

    def labelled(self) -> Labelled:
        """The means as an array with named axes. Entries without an edge are NaN."""
        values = np.where(self.graph.exists, on_host(self.mean), np.nan)
        return Labelled(values, {"target": self.graph.target_names, "source": self.graph.source_names}, "edge score")

    def largest(self, n: int = 10) -> list[tuple[str, float, float]]:
        """(edge, score, standard error) of the n edges of largest absolute score, in descending order."""
        mean, error = on_host(self.mean), on_host(self.standard_error)
        order = np.argsort(-np.where(self.graph.exists, np.abs(mean), -1.0), axis=None, kind="stable")[:n]
        sources, targets = self.graph.source_names, self.graph.target_names
        places = [divmod(int(i), mean.shape[1]) for i in order]
        return [
            (f"{sources[s]}->{targets[t]}", float(mean[t, s]), float(error[t, s]))
            for t, s in places
            if self.graph.exists[t, s]
        ]


def edge_scores(
    model: Model,
    contrast: Contrast,
    method: EdgeMethod,
    *,
    graph: Graph | None = None,
    ablated: Activations | None = None,
    prompts_at_once: int | None = None,
) -> EdgeScores:
    """Score every edge of a model's graph.

    Args:
      model: a model, under surgery or not, in any layout.
      contrast: the prompts and the metric.
      method: `EAP()`, `EAPIG(steps=...)`, `IGActivations(...)`, `CleanCorrupted()`, `ExactEdges(...)`,
        `FlowRoutes()`, or your own.
      graph: the graph. None: `residual_graph(model)`.
      ablated: what an ablated edge carries (see `source_values`). None: the values of the corrupted prompts.
      prompts_at_once: the number of prompts that run together, which bounds the memory. None: all. The result is the
        same up to rounding.

    Returns:
      The mean and variance over prompts. It can be traced.

    Raises:
      UserError: `method` is not a method, or the graph does not fit the model.
    """
    if not isinstance(method, EdgeMethod):
        names = ", ".join(f"{name}()" for name in METHODS.names())
        raise UserError(f"method={method!r}: give one of {names}")
    graph = residual_graph(model) if graph is None else graph
    n = contrast.clean.shape[0]
    size = n if prompts_at_once is None else min(prompts_at_once, n)
    if size < 1:
        raise UserError(f"prompts_at_once={prompts_at_once} must be at least 1")
    mean, variance = _over_groups(model, contrast, ablated, method=method, graph=graph, size=size)
    return EdgeScores(mean, variance, n, graph)


@partial(jax.jit, static_argnames=("method", "graph", "size"))
def _over_groups(
    model: Model, contrast: Contrast, ablated: Activations | None, *, method: EdgeMethod, graph: Graph, size: int
) -> tuple[Float[Array, "target source"], Float[Array, "target source"]]:
    """The mean and the variance of the scores, from one group of `size` prompts at a time (Chan et al. 1979)."""
    n = contrast.clean.shape[0]
    groups = -(-n // size)
    slot = jnp.arange(groups * size).reshape(groups, size)
    exists = jnp.asarray(graph.exists)

    def group(slot: Int[Array, " row"]) -> tuple[Array, Array, Array]:
        rows, real = jnp.minimum(slot, n - 1), slot < n  # the last prompt fills up the last group
        other = None if ablated is None else rows_of(ablated, rows, n)
        found = method.scores(model, contrast.rows(rows), graph, other)
        return _moments(jnp.where(exists[None], found, jnp.zeros_like(found)), real)

    def step(sums: tuple[Array, Array, Array], slot: Int[Array, " row"]) -> tuple[tuple[Array, Array, Array], None]:
        return _merged(sums, group(slot)), None

    sums = group(slot[0])
    if groups > 1:
        sums, _ = jax.lax.scan(step, sums, slot[1:])
    _, mean, square = sums
    return mean, square / jnp.asarray(n - 1, square.dtype) if n > 1 else jnp.full_like(square, jnp.nan)


def _moments(values: Float[Array, "row ..."], real: Bool[Array, " row"]) -> tuple[Array, Array, Array]:
    """(number, mean, sum of squared deviations) of the real rows."""
    weight = real.astype(values.dtype).reshape(-1, *(1,) * (values.ndim - 1))
    number = jnp.sum(real).astype(values.dtype)
    mean = jnp.sum(values * weight, axis=0) / number
    return number, mean, jnp.sum(weight * (values - mean[None]) ** 2, axis=0)


def _merged(a: tuple[Array, Array, Array], b: tuple[Array, Array, Array]) -> tuple[Array, Array, Array]:
    """The moments of two groups together."""
    number, shift = a[0] + b[0], b[1] - a[1]
    return number, a[1] + shift * (b[0] / number), a[2] + b[2] + shift * shift * (a[0] * b[0] / number)


def rows_of(ablated: Activations, rows: Int[Array, " row"], n: int) -> Activations:
    """The ablated values of some of `n` prompts. Values that are the same for all prompts have one row."""
    return jax.tree.map(lambda leaf: leaf[:, rows] if leaf.shape[1] == n else leaf, ablated)
