"""`find_cause`: the smallest set of components found whose values, taken from other prompts, undo a prediction.

One prompt is run many times. In each run some components have the values that they have in another prompt of the same
kind, at the same distance from the end. A set of components explains the prediction if it is gone without what the set
knew about this prompt.

    components = components_of(model, contrast, {"last": [n - 1], "earlier": range(n - 1)})
    cause = find_cause(model, contrast, components, test)

The search has three steps, all by runs of one compiled program: every component alone; the components in the order of
these effects, more and more of them, until the prediction is undone; then back, leaving out one after another as long
as it stays undone. The set is minimal: no single component can be left out. It need not be the smallest of all.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float

from jax_interp.circuits.contrast import Contrast, measure
from jax_interp.circuits.nodes import make_nodes, node_metric
from jax_interp.circuits.units import Nodes
from jax_interp.core.errors import UserError
from jax_interp.core.processes import on_host
from jax_interp.core.pytrees import register_dataclass
from jax_interp.surgery import Address
from jax_interp.surgery.contract import Model
from jax_interp.surgery.taps import static
from jax_interp.training.meshes import row_shards
from jax_interp.training.sharding import shard_batch


@register_dataclass
@dataclasses.dataclass(frozen=True, eq=False)
class Components:
    """Components of a model: groups of units. `components_of` makes it.

    Attributes:
      members: which units each component has.
      nodes: the units.
      names: the name of each component, such as "L3 H5, last".
      kinds: what each component is, such as "attn.z, last". Random sets have as many of each kind.
    """

    members: Bool[Array, "component unit"]
    nodes: Nodes = static()  # noqa: RUF009
    names: tuple[str, ...] = static()
    kinds: tuple[str, ...] = static()


def components_of(
    model: Model,
    contrast: Contrast,
    classes: Mapping[str, Sequence[int]],
    addresses: Sequence[str] = ("blocks.*.attn.z", "blocks.*.mlp_out"),
) -> Components:
    """Each head and each MLP, separately in each class of positions.

    Args:
      model: any model that keeps the surgery contract and has these values.
      contrast: the prompts.
      classes: the positions of each class by name. Classes without positions are left out.
      addresses: the values. One with an axis of heads is cut into heads.
    """
    named = [make_nodes(model, contrast, one, per="pos") for one in addresses]
    heads = [any(axis in ("head", "kv_head") for axis in nodes.values[0].axes) for nodes in named]
    nodes = Nodes(())
    for one, has_heads in zip(addresses, heads):
        nodes += make_nodes(model, contrast, one, per=("head", "pos") if has_heads else "pos")
    members, names, kinds = [], [], []
    numbers = nodes.split(np.arange(nodes.size))
    for value in nodes.values:
        units, what = numbers[value.address], Address.parse(value.address).name
        units = np.moveaxis(units, list(value.unit_axes).index("pos"), -1)
        layers = value.unit_axes.get("layer", (None,))
        units = units.reshape(len(layers), -1, units.shape[-1])
        has_heads = len(value.sizes) > 1
        for i, layer in enumerate(layers):
            for head in range(units.shape[1]):
                for name, positions in classes.items():
                    if len(positions):
                        members.append(np.isin(np.arange(nodes.size), units[i, head, np.asarray(positions)]))
                        part = f"H{head}" if has_heads else {"mlp_out": "MLP"}.get(what, what)
                        names.append(f"{'' if layer is None else f'L{layer} '}{part}, {name}")
                        kinds.append(f"{what}, {name}")
    return Components(jnp.asarray(np.stack(members)), nodes, tuple(names), tuple(kinds))


@dataclasses.dataclass(frozen=True, eq=False)
class Cause:
    """What `find_cause` found. The metric is positive where the prediction stands.

    Attributes:
      components: the components that were searched.
      base: the metric of the prompt.
      alone: the metric if one component is resampled, [component, prompt], on the prompts of the search.
      chosen: the components of the set, in the order of their effects alone. Empty if nothing undoes the prediction.
      chosen_metric: the metric if the set is resampled, on the other prompts (`test`).
      everything: the metric if all components are resampled, on the other prompts.
      random: the metric of random sets, [set, prompt], with as many components of each kind.
      others: the metric of the other prompts themselves.
    """

    components: Components
    base: float
    alone: Float[np.ndarray, "component prompt"]
    chosen: tuple[int, ...]
    chosen_metric: Float[np.ndarray, " prompt"]
    everything: Float[np.ndarray, " prompt"]
    random: Float[np.ndarray, "set prompt"]
    others: Float[np.ndarray, " prompt"]

    def ranked(self) -> list[tuple[int, float, float]]:
        """(component, mean drop of the metric if it alone is resampled, standard deviation over the prompts), the
        largest drop first."""
        drop = self.base - self.alone
        mean, spread = drop.mean(1), drop.std(1, ddof=1)
        return [(int(i), float(mean[i]), float(spread[i])) for i in np.argsort(-mean, kind="stable")]


def find_cause(
    model: Model,
    contrast: Contrast,
    components: Components,
    test: Contrast,
    *,
    random_sets: int = 20,
    seed: int = 0,
    rows: int = 64,
) -> Cause:
    """Search for a small set of components that undoes a prediction when their values are resampled.

    Undone means: over the prompts that values are taken from, the mean of the metric is 0 or less.

    Args:
      model: any model that keeps the surgery contract.
      contrast: `clean` is the prompt, once for each corrupted prompt; `corrupted` are the prompts that values are taken
        from. The metric is positive where the prediction stands: the logit of the predicted token minus another logit.
      components: the components.
      test: the same with other prompts, as many. They are not used in the search. All figures about the set are from
        them.
      random_sets: how many random sets of equal size are measured beside it.
      seed: of the random sets.
      rows: how many prompts run at once.

    Raises:
      UserError: the metric of the prompt is not positive, or there are fewer than two prompts to take values from.
    """
    if contrast.clean.shape != test.clean.shape or contrast.clean.shape[0] < 2:
        raise UserError(
            f"the prompts of the search have shape {contrast.clean.shape}, those of the test {test.clean.shape}: give "
            "two or more of each, as many for the test as for the search"
        )
    base = float(_metric(model, contrast.clean[:1], contrast.rows(slice(1)))[0])
    if not base > 0:
        raise UserError(
            f"the metric of the prompt is {base:.4g}: there is no prediction to undo where it is not positive"
        )
    n = len(components.names)
    run = lambda sets, on: set_metrics(model, on, components, np.asarray(sets, bool), rows=rows)
    alone = run(np.eye(n), contrast)
    order = np.argsort(alone.mean(1), kind="stable")
    more_and_more = np.zeros((n, n), bool)
    for size in range(1, n + 1):
        more_and_more[size - 1, order[:size]] = True
    undone = np.flatnonzero(run(more_and_more, contrast).mean(1) <= 0)
    chosen: tuple[int, ...] = ()
    if len(undone):
        kept = more_and_more[undone[0]]
        while (smaller := _without_one(kept)) is not None:
            means = run(smaller, contrast).mean(1)
            if means.min() > 0:
                break
            kept = smaller[int(np.argmin(means))]
        chosen = tuple(int(i) for i in order if kept[i])
    sets = [np.isin(np.arange(n), chosen), np.ones(n, bool), *_random_sets(components.kinds, chosen, random_sets, seed)]
    found = run(sets, test)
    others = on_host(_metric(model, test.corrupted, test))
    return Cause(components, base, alone, chosen, found[0], found[1], found[2:], others)


def set_metrics(
    model: Model, contrast: Contrast, components: Components, sets: Bool[np.ndarray, "set component"], *, rows: int = 64
) -> Float[np.ndarray, "set prompt"]:
    """The metric of each prompt if the components of a set have the values of the corrupted prompts.

    Args:
      model: the model.
      contrast: the prompts.
      components: the components.
      sets: which components each set has.
      rows: how many prompts run at once. Every number of sets runs the same compiled program.
    """
    mesh = jax.sharding.get_mesh()
    ways = 1 if mesh.empty else row_shards(mesh)
    at_once = -(-max(1, rows // contrast.clean.shape[0]) // ways) * ways
    padded = np.concatenate([sets, np.zeros((-len(sets) % at_once, sets.shape[1]), bool)])
    some = lambda start: padded[start : start + at_once]
    placed = some if mesh.empty else lambda start: shard_batch(some(start), mesh)
    parts = [_set_metrics(model, contrast, components, placed(start)) for start in range(0, len(padded), at_once)]
    return np.concatenate([on_host(part) for part in parts])[: len(sets)]


@jax.jit
def _set_metrics(model: Model, contrast: Contrast, components: Components, sets: Array) -> Float[Array, "set prompt"]:
    replaced = jnp.einsum("sc,cu->su", sets.astype(jnp.float32), components.members.astype(jnp.float32)) > 0
    return jax.vmap(lambda one: node_metric(model, contrast, components.nodes, ~one))(replaced)


_metric = jax.jit(measure)


def _without_one(kept: Bool[np.ndarray, " component"]) -> Bool[np.ndarray, "set component"] | None:
    """All sets with one component less; None if only one is left."""
    members = np.flatnonzero(kept)
    if len(members) < 2:
        return None
    smaller = np.repeat(kept[None], len(members), axis=0)
    smaller[np.arange(len(members)), members] = False
    return smaller


def _random_sets(
    kinds: Sequence[str], chosen: Sequence[int], count: int, seed: int
) -> list[Bool[np.ndarray, " component"]]:
    """Random sets with as many components of each kind as the chosen set. That set itself is not among them."""
    rng, labels = np.random.default_rng(seed), np.asarray(kinds)
    found = []
    for _ in range(count):
        one = np.zeros(len(kinds), bool)
        for kind in sorted({kinds[i] for i in chosen}):
            wanted = sum(kinds[i] == kind for i in chosen)
            one[rng.choice(np.flatnonzero(labels == kind), wanted, replace=False)] = True
        if set(np.flatnonzero(one).tolist()) != set(chosen):
            found.append(one)
    return found
