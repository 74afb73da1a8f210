"""The unraveled view of a model: a tree in which each path has its own copy of each component.

A model is a graph: many parts read one head. Unraveled, it is a tree whose root is the logits. Each reader has its own
copy of every component that writes to it, these copies have copies of their own below them, and so on (Goldowsky-Dill
et al. 2023, arXiv:2304.05969). A path names one copy. ("a0.h1", "a2.h0<q>", "m2", "logits") is a0.h1 as the query of
a2.h0 sees it, in the copy of a2.h0 that m2 reads, in the copy of m2 that the logits read. All copies compute the same,
so the tree gives the logits of the model. An edit can act on one copy and leave the others.

    patch_paths(model, contrast, [("a0.h1", "a2.h0<q>", "logits"), ("a0.h1", "logits")])    # each path by itself
    patch_paths(model, contrast, [[("a0.h1", "m1", "logits"), ("a0.h1", "logits")]])        # two paths together

Patching two paths together is not the sum of patching each: MLPs, norms and attention patterns are no sums over what
they read. In a linear model it is the sum (`expand`).

The input of a copy is the component's input in the plain run, plus what the patched copies below it write, minus what
they wrote in the plain run. A copy without a patch below it computes what it computes in the plain run. So only the
copies on the given paths are computed: one forward pass for each.
"""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Sequence
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float

from jax_interp.circuits.contrast import Contrast, Direction, inputs_of
from jax_interp.circuits.paths.components import Shape, shape_of
from jax_interp.core.errors import UserError
from jax_interp.core.labelled import Labelled
from jax_interp.core.layer import out_sharding_like
from jax_interp.core.pytrees import register_dataclass
from jax_interp.surgery import Activations, Each, Edit, Model, at, edit, values_at

Path = tuple[str, ...]
"""From the sender to the logits: ("a0.h1", "a2.h0<q>", "m2", "logits")."""

_INPUTS = {"q": "q_input", "k": "k_input", "v": "v_input", "mlp": "mlp_in"}


def patch_paths(
    model: Model,
    contrast: Contrast,
    paths: Sequence[Path | list[Path]],
    *,
    direction: Direction = "noise",
) -> Labelled:
    """Patch paths of the unraveled model, in one compiled program.

    The first component of a path gets its output from the other run, in its copy on this path. Each later component of
    the path is computed again from its changed input. All else is as in the plain run, other copies of the same
    components too.

    Args:
      model: any model whose heads have separate inputs (`blocks.*.q_input`), under surgery or not.
      contrast: the prompts and the metric.
      paths: each entry is a path, or a list of paths that are patched together. A path is a tuple: a sender ("input",
        "a0.h1", "m0"), any number of readers ("a1.h2<q>", "<k>", "<v>", "m1"), and "logits". In a model with grouped
        heads, "a1.h2<k>" is what query head 2 sees of its key: each head has its own copy of the shared keys.
      direction: noise: the corrupted output goes into the clean run. denoise: the other way.

    Returns:
      The metric, [path, prompt].

    Raises:
      UserError: an entry is no path of this model.
    """
    shape = shape_of(model, contrast)
    sets = [[entry] if isinstance(entry, tuple) else entry for entry in paths]
    if not sets or not all(isinstance(entry, list) and entry for entry in sets):
        raise UserError("give a list of paths, or of non-empty lists of paths; a path is a tuple of names")
    for path in (path for entry in sets for path in entry):
        _check(path, shape)
    trees = [_tree(entry) for entry in sets]
    size = max(len(tree) for tree in trees)
    copies = jax.tree.map(lambda *each: np.stack(each), *(_copies(tree, shape, size) for tree in trees))
    source, target = contrast.runs(direction)
    values = np.asarray(_patched(model, contrast, source, target, copies, mlps=shape.mlps))
    labels = [" + ".join(" -> ".join(path) for path in entry) for entry in sets]
    return Labelled(values, {"path": labels, "prompt": range(values.shape[1])}, "metric")


@register_dataclass
@dataclasses.dataclass(frozen=True)
class _Copies:
    """The copies on some paths, in the order in which they are computed.

    Args:
      sends: which component of the copy gets its output from the other run: "head" [copy, layer, head], "mlp" [copy,
        layer], "input" [copy].
      computes: which component is computed again, in the same form.
      below: for each kind of input, the copies that write to it, [copy, copy].
      below_logits: the copies that the logits read, [copy].
    """

    sends: dict[str, Bool[Array | np.ndarray, "copy ..."]]
    computes: dict[str, Bool[Array | np.ndarray, "copy ..."]]
    below: dict[str, Bool[Array | np.ndarray, "copy copy"]]
    below_logits: Bool[Array | np.ndarray, " copy"]


Tree = dict[Path, tuple[bool, dict[str, list[Path]]]]
"""For each copy, by its path: whether it is sent, and the copies below each of its inputs. Lower copies come first."""


def _tree(paths: list[Path]) -> Tree:
    """All copies on some paths. A head is one copy, whichever of its inputs a path comes through."""
    found: Tree = {}
    for path in paths:
        for i in range(len(path) - 1):
            copy = (path[i].split("<")[0], *path[i + 1 :])
            sent, below = found.get(copy, (False, {}))
            found[copy] = (sent or i == 0, below)
            if i:
                child, kind = (path[i - 1].split("<")[0], *path[i:]), path[i][-2] if "<" in path[i] else "mlp"
                if child not in below.setdefault(kind, []):
                    below[kind].append(child)
    return dict(sorted(found.items(), key=lambda item: -len(item[0])))


def _copies(tree: Tree, shape: Shape, size: int) -> _Copies:
    """The arrays of a tree, filled up to `size` copies that do nothing."""
    empty = lambda: {
        "head": np.zeros((size, shape.layers, shape.heads), bool),
        "mlp": np.zeros((size, shape.layers), bool),
        "input": np.zeros(size, bool),
    }
    copies = _Copies(empty(), empty(), {kind: np.zeros((size, size), bool) for kind in _INPUTS}, np.zeros(size, bool))
    order = {copy: i for i, copy in enumerate(tree)}
    for copy, (sent, below) in tree.items():
        i, (kind, *place) = order[copy], _place(copy[0])
        (copies.sends if sent else copies.computes)[kind][(i, *place)] = True
        for part, children in below.items():
            copies.below[part][i, [order[child] for child in children]] = True
        copies.below_logits[i] = len(copy) == 2
    return copies


def _place(name: str) -> tuple[str, *tuple[int, ...]]:
    """(kind, layer, head) of a component."""
    if name == "input":
        return ("input",)
    numbers = [int(number) for number in re.findall(r"\d+", name)]
    return ("head" if name[0] == "a" else "mlp", *numbers)


def _check(path: Path, shape: Shape) -> None:
    """Raise `UserError` if this is no path of the model."""
    if not isinstance(path, tuple) or len(path) < 2 or path[-1] != "logits":
        raise UserError(f"{path!r} is no path: give a tuple of names, from a sender to 'logits'")
    senders, last = shape.senders(), (-1, 0)
    for i, name in enumerate(path[:-1]):
        whole = name.split("<")[0] if isinstance(name, str) else name
        ending = "" if i == 0 or not str(whole).startswith("a") else "<[qkv]>"
        if whole not in senders or (i and whole == "input") or not re.fullmatch(re.escape(whole) + ending, name):
            raise UserError(
                f"{path!r}: {name!r} is no {'sender' if i == 0 else 'reader'} of this model. A path begins with input, "
                f"a0.h0 to a{shape.layers - 1}.h{shape.heads - 1}"
                + (f", or m0 to m{shape.layers - 1}" if shape.mlps else "")
                + "; later parts are inputs, such as a1.h0<q>, <k> or <v>, and MLPs"
            )
        kind, *place = _place(whole)
        now = (-1, 1) if kind == "input" else (place[0], 1 if kind == "mlp" and not shape.parallel else 0)
        if now <= last:
            raise UserError(f"{path!r}: {name} does not read what {path[i - 1]} writes: it is not later in the model")
        last = now


@register_dataclass
@dataclasses.dataclass(frozen=True)
class _Select:
    """An edit: keep the entries in `keep`, and take the others from `values`."""

    keep: Bool[Array | np.ndarray, "..."]
    values: Array

    def __call__(self, x: Array) -> Array:
        return jnp.where(self.keep, x, self.values)


@register_dataclass
@dataclasses.dataclass(frozen=True)
class _Plus:
    """An edit: add to the entries in `mask`."""

    mask: Bool[Array | np.ndarray, "..."]
    change: Array

    def __call__(self, x: Array) -> Array:
        return x + jnp.where(self.mask, self.change, jnp.zeros_like(self.change))


@partial(jax.jit, static_argnames="mlps")
def _patched(
    model: Model, contrast: Contrast, source: Array, target: Array, copies: _Copies, *, mlps: bool
) -> Float[Array, "path prompt"]:
    inputs = inputs_of(model, contrast)
    names = ["blocks.0.resid_pre", "blocks.*.attn.z", "blocks.*.attn_out", *(["blocks.*.mlp_out"] if mlps else [])]
    sent, own = (values_at(model, names)(tokens, **inputs) for tokens in (source, target))
    size = copies.below_logits.shape[1]

    def of_tree(tree: _Copies) -> Float[Array, " prompt"]:
        def compute(changes: Array, i_and_copy: tuple[Array, _Copies]) -> tuple[Array, None]:
            i, copy = i_and_copy
            edited = edit(model, _edits(copy, changes, sent, own))
            got = values_at(edited, names)(target, **inputs)
            return changes.at[i].set(_change(copy, got, sent, own)), None

        start = own["blocks.0.resid_pre"]
        rows = out_sharding_like(start)
        spec = None if rows is None else jax.P(None, *rows)
        changes = jnp.zeros((size, *start.shape), start.dtype, out_sharding=spec)
        changes, _ = jax.lax.scan(compute, changes, (jnp.arange(size), tree))
        total = jnp.einsum("c,cptd->ptd", tree.below_logits.astype(changes.dtype), changes)
        last = at("blocks.-1.resid_post", _Plus(jnp.ones((1, 1, 1), bool), total))
        return contrast.metric(edit(model, last)(target, **inputs))

    return jax.lax.map(of_tree, copies)


def _edits(copy: _Copies, changes: Array, sent: Activations, own: Activations) -> list[Edit]:
    """The edits of the run in which one copy is computed: other heads keep the outputs of the plain run."""
    z, mlp = "blocks.*.attn.z", "blocks.*.mlp_out"
    of_heads = lambda mask: mask[:, None, None, :, None]
    values = jnp.where(of_heads(copy.sends["head"]), sent[z], own[z])
    edits = [at(z, Each(_Select(of_heads(copy.computes["head"]), values)))]
    for kind, name in _INPUTS.items():
        change = jnp.einsum("c,cptd->ptd", copy.below[kind].astype(changes.dtype), changes)
        change = jnp.broadcast_to(change, (own[z].shape[0], *change.shape))
        if kind != "mlp":
            edits.append(at(f"blocks.*.{name}", Each(_PlusInHeads(copy.computes["head"], change))))
        elif mlp in own:
            edits.append(at(f"blocks.*.{name}", Each(_Plus(copy.computes["mlp"][:, None, None, None], change))))
    if mlp in own:
        edits.append(at(mlp, Each(_Select(~copy.sends["mlp"][:, None, None, None], sent[mlp]))))
    return edits  # type: ignore[return-value]


@register_dataclass
@dataclasses.dataclass(frozen=True)
class _PlusInHeads:
    """An edit of the inputs of heads or key/value heads: add `change` for the heads in `heads`, [head]."""

    heads: Bool[Array | np.ndarray, " head"]
    change: Float[Array, "prompt pos d_model"]

    def __call__(self, x: Float[Array, "prompt pos head d_model"]) -> Array:
        shared = jnp.any(self.heads.reshape(x.shape[2], -1), axis=1)  # query heads that share a key/value head
        return x + jnp.where(shared[None, None, :, None], self.change[:, :, None], jnp.zeros((), x.dtype))


def _change(copy: _Copies, got: Activations, sent: Activations, own: Activations) -> Float[Array, "prompt pos d_model"]:
    """What a copy writes, minus what it writes in the plain run."""
    attn, mlp, start = "blocks.*.attn_out", "blocks.*.mlp_out", "blocks.0.resid_pre"
    layers = lambda mask: mask[:, None, None, None]
    heads = jnp.any(copy.sends["head"] | copy.computes["head"], axis=1)
    change = jnp.sum(jnp.where(layers(heads), got[attn] - own[attn], 0), axis=0)
    if mlp in own:
        here = layers(copy.sends["mlp"] | copy.computes["mlp"])
        change += jnp.sum(jnp.where(here, got[mlp] - own[mlp], 0), axis=0)
    return change + jnp.where(copy.sends["input"], sent[start] - own[start], 0)
