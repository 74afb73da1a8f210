"""Every figure of the suite, of one decomposition, and over an oracle's."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from jax_interp.core.errors import UserError
from jax_interp.decomposition.components import Decomposed
from jax_interp.decomposition.importance.inputs import PerMatrix
from jax_interp.decomposition.linearity.ablatable import (
    Ablatable,
    WeightParts,
    of_decomposition,
    of_weights,
    side_by_side,
)

EXACT_UP_TO = 12  # parts below full importance whose on/off patterns are gone through one by one


@dataclasses.dataclass(frozen=True)
class Figure:
    """A squared error: `raw` is the mean over rows of ‖f(x; mask) - f(x)‖², `normalised` that over the mean of ‖f(x)‖²,
    `excess` what of the normalised one an oracle decomposition does not have."""

    raw: float
    normalised: float
    excess: float | None = None

    @property
    def relative(self) -> float:
        """The root of the normalised error: a relative norm."""
        return math.sqrt(self.normalised)

    def over(self, oracle: Figure) -> Figure:
        return dataclasses.replace(self, excess=self.normalised - oracle.normalised)


@dataclasses.dataclass(frozen=True)
class LinearityReport:
    """All entries. Errors are `Figure`s; curves are by k, by the adversary's steps.

    faithfulness   ‖Σθ_c - θ‖ / ‖θ‖ by matrix
    all_on         every part on
    strict         exactly the parts whose importance is above the threshold
    stochastic     m = g + (1 - g) r, r uniform
    subset         the needed parts and k random others
    union          the needed parts of this row and of k random others
    adversarial    sign ascent on r, by scope and number of steps
    exact          the worst of all on/off patterns of the parts below full importance; None where those are many
    resample       parts that are not needed get another row's activations, and a Δ that is not needed is left out;
                   None where parts have none
    scrub, anti    half of the parts that are not needed are off; half of the needed. Their ratio is far above 1
    l0, rank, mdl  parts above the threshold on a row; the ranks of all parts together; bits a row to say which parts
                   are on and of what rank, `Σ_on (log2 parts + rank)`
    interaction    the mean and the largest of |L({i,j}) - L({i}) - L({j}) + L({})|, L the normalised damage of ablating
                   from all on: redundancy between parts that no ablation of one shows
    """

    faithfulness: dict[str, float]
    all_on: Figure
    strict: Figure
    stochastic: Figure
    subset: dict[int, Figure]
    union: dict[int, Figure]
    adversarial: dict[str, dict[int, Figure]]
    exact: Figure | None
    resample: Figure | None
    scrub: Figure
    anti: Figure
    l0: float
    rank: int
    mdl: float
    interaction_mean: float
    interaction_max: float

    @property
    def anti_over_scrub(self) -> float:
        return self.anti.raw / max(self.scrub.raw, 1e-30)

    def rows(self) -> list[tuple[str, Figure | float]]:
        """Every entry by name, in order."""
        found: list[tuple[str, Figure | float]] = [(f"faithfulness {n}", v) for n, v in self.faithfulness.items()]
        found += [("all on", self.all_on), ("strict", self.strict), ("stochastic", self.stochastic)]
        found += [(f"subset +{k}", v) for k, v in self.subset.items()]
        found += [(f"union of {k + 1}", v) for k, v in self.union.items()]
        found += [
            (f"adversarial, {scope}, {n} steps", v) for scope, by in self.adversarial.items() for n, v in by.items()
        ]
        found += [("adversarial, exact", self.exact)] if self.exact is not None else []
        found += [("resample", self.resample)] if self.resample is not None else []
        found += [("scrub", self.scrub), ("anti-scrub", self.anti), ("anti / scrub", self.anti_over_scrub)]
        found += [("L0", self.l0), ("sum of ranks", float(self.rank)), ("MDL, bits a row", self.mdl)]
        return found + [("interaction, mean", self.interaction_mean), ("interaction, max", self.interaction_max)]

    def __str__(self) -> str:
        lines = [f"{'':44}{'raw':>12}{'normalised':>12}{'over oracle':>12}"]
        for name, value in self.rows():
            if isinstance(value, Figure):
                excess = "" if value.excess is None else f"{value.excess:12.4g}"
                lines.append(f"{name:44}{value.raw:12.4g}{value.normalised:12.4g}{excess:>12}")
            else:
                lines.append(f"{name:44}{value:12.4g}")
        return "\n".join(lines)


def weight_linearity(
    f: Callable[[Any, Array], Array],
    components: WeightParts,
    importance: Float[Array, "row part"],
    data: Float[Array, "row ..."],
    oracle: tuple[WeightParts, Float[Array, "row part"]] | None = None,
    **options: Any,
) -> LinearityReport:
    """The report of parts of the weights of any `f(theta, x)`; `oracle` is the ideal decomposition, with importances of
    its own. `options` as in `linearity`."""
    report = linearity(of_weights(f, components), importance, data, **options)
    if oracle is None:
        return report
    return over(report, linearity(of_weights(f, oracle[0]), oracle[1], data, **options))


def decomposition_linearity(
    model: Decomposed, importance: PerMatrix, data: Array, *, delta: bool = False, **options: Any
) -> LinearityReport:
    """The report of a decomposed model, by the importances of its subcomponents on `data`. With `delta` each matrix's
    Δ is a part of importance 0."""
    return linearity(
        of_decomposition(model, delta=delta), side_by_side(model, importance, delta=delta), data, **options
    )


def linearity(
    parts: Ablatable,
    importance: Float[Array, "row part"],
    data: Array,
    *,
    key: Array | None = None,
    threshold: float = 0.0,
    samples: int = 16,
    ks: Sequence[int] = (1, 2, 4, 8),
    adversary_steps: Sequence[int] = (20, 80),
    pairs: int = 256,
) -> LinearityReport:
    """Everything of `LinearityReport`. Random masks are drawn `samples` times; the adversary steps by 2
    over its number of steps; interactions are of all pairs of parts, or of `pairs` random ones."""
    g = jnp.asarray(importance, jnp.float32)
    if g.shape != (data.shape[0], parts.count):
        raise UserError(f"importance has shape {g.shape}: {data.shape[0]} rows of data, {parts.count} parts")
    key = jax.random.key(0) if key is None else key
    keys = iter(jax.random.split(key, 16))
    needed = (g > threshold).astype(jnp.float32)
    right = parts.target(data)
    size = float(jnp.mean(_square(right)))
    figure = lambda raw: Figure(float(raw), float(raw) / max(size, 1e-30))
    error = lambda mask: _error(parts.of, mask, data, right)

    def drawn(key: Array, mask_of: Callable[[Array], Array]) -> Figure:
        total = sum(float(error(mask_of(k))) for k in jax.random.split(key, samples))
        return figure(total / samples)

    uniform = lambda k: jax.random.uniform(k, g.shape)
    adversarial = {}
    for scope, rows in (("unique_per_datapoint", g.shape[0]), ("shared_across_batch", 1)):
        r = jax.random.uniform(next(keys), (rows, g.shape[1]))
        adversarial[scope] = {n: figure(_adversary(parts.of, g, data, right, r, n)) for n in adversary_steps}
    exact = _exact(parts, g, data, right)
    resample = None
    if hasattr(parts.of, "resampled"):
        donors = [jax.random.permutation(k, data.shape[0]) for k in jax.random.split(next(keys), samples)]
        resample = figure(np.mean([float(_resampled(parts.of, needed, data, right, d)) for d in donors]))
    half = lambda k: (uniform(k) < 0.5).astype(jnp.float32)
    mean, largest = _interactions(parts, data, right, size, pairs, next(keys))
    on = np.asarray(needed)
    return LinearityReport(
        dict(parts.faithfulness),
        figure(error(jnp.ones_like(g))),
        figure(error(needed)),
        drawn(next(keys), lambda k: g + (1 - g) * uniform(k)),
        {k: drawn(next_, lambda key, k=k: _with_others(needed, uniform(key), k))
         for k, next_ in zip(ks, jax.random.split(next(keys), len(ks))) if k <= parts.count},
        {k: drawn(next_, lambda key, k=k: _union(needed, key, k))
         for k, next_ in zip(ks, jax.random.split(next(keys), len(ks)))},
        adversarial,
        None if exact is None else figure(exact),
        resample,
        drawn(next(keys), lambda k: jnp.maximum(needed, half(k))),
        drawn(next(keys), lambda k: 1 - needed * half(k)),
        float(on.sum(axis=1).mean()),
        int(parts.ranks.sum()),
        float((on * (math.log2(max(parts.count, 1)) + parts.ranks[None])).sum(axis=1).mean()),
        mean,
        largest,
    )  # fmt: skip


def over(report: LinearityReport, oracle: LinearityReport) -> LinearityReport:
    """The report with every figure's excess over the oracle's."""

    def both(mine: Any, theirs: Any) -> Any:
        if isinstance(mine, Figure):
            return mine.over(theirs) if isinstance(theirs, Figure) else mine
        if isinstance(mine, dict):
            return {name: both(value, theirs.get(name)) for name, value in mine.items()}
        return mine

    names = [field.name for field in dataclasses.fields(report)]
    return LinearityReport(**{n: both(getattr(report, n), getattr(oracle, n)) for n in names})


def _square(x: Array) -> Float[Array, " row"]:
    return jnp.sum(x.astype(jnp.float32) ** 2, axis=tuple(range(1, x.ndim)))


def _with_others(needed: Array, draw: Array, k: int) -> Array:
    """The needed parts and the k others that drew the largest numbers."""
    draw = jnp.where(needed > 0, -1.0, draw)
    least = -jnp.sort(-draw, axis=1)[:, k - 1 : k]
    return jnp.where((draw >= least) & (draw >= 0), 1.0, needed)


def _union(needed: Array, key: Array, k: int) -> Array:
    """The needed parts of each row and of k others: of row i those of row p(i), for k random permutations p."""
    found = needed
    for one in jax.random.split(key, k):
        found = jnp.maximum(found, needed[jax.random.permutation(one, needed.shape[0])])
    return found


@jax.jit
def _error(of: Any, mask: Array, data: Array, right: Array) -> Float[Array, ""]:
    return jnp.mean(_square(of.run(mask, data) - right))


@jax.jit
def _resampled(of: Any, keep: Array, data: Array, right: Array, donor: Array) -> Float[Array, ""]:
    return jnp.mean(_square(of.resampled(keep, data, donor) - right))


@jax.jit
def _adversary(of: Any, g: Array, data: Array, right: Array, r: Array, steps: Array) -> Float[Array, ""]:
    """The error after sign ascent on r; steps times step size is 2."""
    loss = lambda r: jnp.sum(_square(of.run(g + (1 - g) * jnp.broadcast_to(r, g.shape), data) - right))
    size = 2.0 / jnp.asarray(steps, jnp.float32)
    move = lambda _, r: jnp.clip(r + size * jnp.sign(jax.grad(loss)(r)), 0.0, 1.0)
    return loss(jax.lax.fori_loop(0, steps, move, r)) / data.shape[0]


@jax.jit
def _at_vertex(of: Any, g: Array, data: Array, right: Array, order: Array, free: Array, bits: Array) -> Array:
    """Each row's error with its free parts, in `order`, set to the bits."""
    r = (bits[None, :] & free).astype(jnp.float32)
    rows = jnp.arange(g.shape[0])[:, None]
    mask = g.at[rows, order].add((1 - jnp.take_along_axis(g, order, axis=1)) * r)
    return _square(of.run(mask, data) - right)


def _exact(parts: Ablatable, g: Array, data: Array, right: Array) -> float | None:
    """The mean over rows of the worst error over all 0/1 patterns of the parts below full importance: for one linear
    map the error is convex in r, so the worst r is one of them."""
    free = np.asarray(g) < 1
    count = int(free.sum(axis=1).max(initial=0))
    if count > EXACT_UP_TO:
        return None
    order = np.argsort(~free, axis=1, kind="stable")[:, :count]  # each row's free parts first
    open_, order = jnp.asarray(np.take_along_axis(free, order, axis=1)), jnp.asarray(order)
    largest = np.zeros(g.shape[0])
    for pattern in range(2**count):
        bits = jnp.asarray([(pattern >> i) & 1 for i in range(count)], bool)
        largest = np.maximum(largest, np.asarray(_at_vertex(parts.of, g, data, right, order, open_, bits)))
    return float(largest.mean())


@jax.jit
def _damage(of: Any, off: Array, data: Array, right: Array) -> Float[Array, ""]:
    mask = jnp.broadcast_to(1 - off, (data.shape[0], off.shape[0]))
    return jnp.mean(_square(of.run(mask, data) - right))


def _interactions(
    parts: Ablatable, data: Array, right: Array, size: float, pairs: int, key: Array
) -> tuple[float, float]:
    C = parts.count
    if C < 2:
        return 0.0, 0.0
    chosen = _pairs(C, pairs, np.random.default_rng(np.asarray(jax.random.key_data(key), np.uint32).tolist()))

    def damage(*ablated: int) -> float:
        off = np.zeros(C, np.float32)
        off[list(ablated)] = 1
        return float(_damage(parts.of, jnp.asarray(off), data, right)) / max(size, 1e-30)

    alone, none = {i: damage(i) for i in sorted({i for pair in chosen for i in pair})}, damage()
    both = [abs(damage(i, j) - alone[i] - alone[j] + none) for i, j in chosen]
    return float(np.mean(both)), float(np.max(both))


def _pairs(C: int, count: int, rng: np.random.Generator) -> list[tuple[int, int]]:
    """`count` pairs (i, j), j < i < C, drawn without repetition, or all of them where there are no more. Pair number k
    in the order (1, 0), (2, 0), (2, 1), ... has the largest i with i (i - 1) / 2 <= k; none but the drawn are formed.
    """
    total = C * (C - 1) // 2
    numbers = range(total) if total <= count else rng.choice(total, count, replace=False).tolist()
    rows = [(1 + math.isqrt(1 + 8 * k)) // 2 for k in numbers]
    return [(i, k - i * (i - 1) // 2) for i, k in zip(rows, numbers)]
