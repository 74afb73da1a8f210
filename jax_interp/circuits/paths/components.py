"""Names of senders and receivers, and the masks that say where in the model they are.

A sender writes to the residual stream: a head "a1.h2", an MLP "m1", or the embedding "input". A receiver reads it: the
query, key or value input of a head "a2.h0<q>", all three of them "a2.h0", an MLP "m2", or "logits". A pair
("a1.h2", pos) is the same at some positions. A list of these is one sender or receiver that consists of several parts.
"""

from __future__ import annotations

import dataclasses
import difflib
import re
from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np
from jaxtyping import Bool

from jax_interp.circuits.contrast import Contrast, inputs_of
from jax_interp.core.errors import UserError
from jax_interp.surgery.contract import Model
from jax_interp.surgery.verbs import survey

Position = int | slice | Sequence[int] | np.ndarray
"""An index (negative: from the end of the prompt), a slice, a list of indices, or a mask, [pos] or [prompt, pos].
Padding does not count."""
Part = str | tuple[str, Position]
Parts = Part | list[Part]

Masks = dict[str, Bool[np.ndarray, "part ..."]]
"""For each kind of value, which entries belong to each sender or receiver. Axes: [part, layer, prompt, pos, head, 1]
for heads, [part, layer, prompt, pos, 1] for MLPs, [part, prompt, pos, 1] for the input. `prompt` can be 1."""

SENT = {"head": "attn.z", "mlp": "mlp_out", "input": "input"}
RECEIVED = {"q": "q_input", "k": "k_input", "v": "v_input", "mlp": "mlp_in"}


@dataclasses.dataclass(frozen=True)
class Shape:
    """What a model consists of: the number of layers, and of heads and key/value heads in each layer.

    Args:
      mlps: whether each layer has an MLP.
      parallel: whether the MLP of a layer reads the same stream as its attention.
    """

    layers: int
    heads: int
    kv_heads: int
    mlps: bool
    parallel: bool = False

    def senders(self) -> list[str]:
        """The names of all senders, in the order of the forward pass."""
        each = [[*(f"a{i}.h{h}" for h in range(self.heads)), *([f"m{i}"] * self.mlps)] for i in range(self.layers)]
        return ["input", *(name for names in each for name in names)]

    def receivers(self) -> list[str]:
        """The names of all receivers, in the order of the forward pass."""
        heads = {"q": self.heads, "k": self.kv_heads, "v": self.kv_heads}
        names = []
        for i in range(self.layers):
            names += [f"a{i}.h{h}<{part}>" for part, n in heads.items() for h in range(n)]
            names += [f"m{i}"] * self.mlps
        return [*names, "logits"]


def shape_of(model: Model, contrast: Contrast) -> Shape:
    """The parts of a model.

    Raises:
      UserError: the model has no separate inputs for its heads, or its layers do not all have the same parts.
    """
    named = survey(model)(contrast.clean, **inputs_of(model, contrast))
    layers = {int(found[1]) for name in named if (found := re.match(r"blocks\.(\d+)\.", name))}
    heads = {named[a].shape[2] for i in layers if (a := f"blocks.{i}.q_input") in named}
    kv_heads = {named[a].shape[2] for i in layers if (a := f"blocks.{i}.k_input") in named}
    mlps = {f"blocks.{i}.mlp_in" in named for i in layers}
    complete = all(f"blocks.{i}.{name}" in named for i in layers for name in ("q_input", "attn.z", "attn_in"))
    if not layers or not complete or len(heads) != 1 or len(kv_heads) != 1 or len(mlps) != 1:
        raise UserError(
            "path patching needs a model whose layers all have heads with separate inputs: blocks.*.q_input, k_input, "
            "v_input and blocks.*.attn.z. `sites(model)(tokens)` shows the names of this model"
        )
    has_mlps = mlps.pop()
    return Shape(
        len(layers), heads.pop(), kv_heads.pop(), has_mlps, has_mlps and not any("resid_mid" in name for name in named)
    )


def sender_masks(groups: Sequence[Parts], shape: Shape, contrast: Contrast) -> Masks:
    """The mask of each sender. Raises `UserError` for a name or a position that does not exist."""
    masks = _Masks(shape, contrast, len(groups))
    for row, group in enumerate(groups):
        for name, pos in _parts(group):
            kind, layer, head, part = _parsed(name, shape.senders())
            if part:
                raise UserError(f"{name!r} is an input of a head. A sender is a whole head: {name.split('<')[0]!r}")
            masks.mark(row, SENT[kind], layer, head, masks.positions(pos))
    return masks.found


def receiver_masks(groups: Sequence[Parts], shape: Shape, contrast: Contrast) -> Masks:
    """The mask of each receiver, without the logits. Raises `UserError` for what does not exist."""
    masks = _Masks(shape, contrast, len(groups))
    for row, group in enumerate(groups):
        for name, pos in _parts(group):
            whole = [f"{name}<{part}>" for part in "qkv"] if re.fullmatch(r"a\d+\.h\d+", name) else [name]
            if len(whole) > 1 and shape.heads != shape.kv_heads:
                raise UserError(
                    f"{name!r}: in this model {shape.heads // shape.kv_heads} heads share each key/value head, so a "
                    f"head has no keys of its own. Name the inputs: {name}<q>, and <k> and <v> of a key/value head"
                )
            for each in whole:
                kind, layer, head, part = _parsed(each, shape.receivers())
                masks.mark(row, RECEIVED[part or kind], layer, head, masks.positions(pos))
    return masks.found


def labels(groups: Sequence[Parts]) -> list[str]:
    """The name of each sender or receiver, for a result."""
    spell = lambda name, pos: name if pos is None else f"{name} at {_spelled(pos)}"
    return [" + ".join(spell(name, pos) for name, pos in _parts(group)) for group in groups]


def _parts(group: Parts) -> Iterable[tuple[str, Any]]:
    for part in group if isinstance(group, list) else [group]:
        if isinstance(part, str):
            yield part, None
        elif isinstance(part, tuple) and len(part) == 2 and isinstance(part[0], str):
            yield part
        else:
            raise UserError(f"{part!r} is no part of a model: give a name such as 'a1.h2', or a pair (name, positions)")


def _parsed(name: str, known: list[str]) -> tuple[str, int, int, str]:
    """(kind, layer, head, q or k or v) of a name."""
    if name not in known and name.split("<")[0] not in known:
        near = difflib.get_close_matches(name, known, n=3) or known[:3]
        raise UserError(f"{name!r}: there is no such part here. There are {', '.join(near)}, ...: {len(known)} in all")
    found = re.fullmatch(r"(a|m)(\d+)(?:\.h(\d+)(?:<([qkv])>)?)?", name)
    if found is None:
        return name, 0, 0, ""
    kind, layer, head, part = found.groups()
    return ("head" if kind == "a" else "mlp"), int(layer), int(head or 0), part or ""


def _spelled(pos: Any) -> str:
    if isinstance(pos, slice):
        return f"{'' if pos.start is None else pos.start}:{'' if pos.stop is None else pos.stop}"
    return "some positions" if np.asarray(pos).dtype == bool else str(np.asarray(pos).tolist())


class _Masks:
    """Masks that are being filled."""

    def __init__(self, shape: Shape, contrast: Contrast, rows: int):
        self.found: Masks = {}
        self._shape, self._rows = shape, rows
        prompts, length = contrast.clean.shape
        real = np.ones((1, length), bool) if contrast.mask is None else np.asarray(contrast.mask)
        self._real, self._prompts = real, prompts
        self._at, self._length = np.cumsum(real, axis=1) - 1, real.sum(axis=1, keepdims=True)

    def mark(self, row: int, kind: str, layer: int, head: int, where: Bool[np.ndarray, "prompt pos"]) -> None:
        shape = self._shape
        if kind not in self.found:
            heads = {
                "attn.z": shape.heads,
                "q_input": shape.heads,
                "k_input": shape.kv_heads,
                "v_input": shape.kv_heads,
            }
            layers = () if kind == "input" else (shape.layers,)
            tail = (heads[kind], 1) if kind in heads else (1,)
            self.found[kind] = np.zeros((self._rows, *layers, 1, self._real.shape[1], *tail), bool)
        mask = self.found[kind]
        axis = 1 if kind == "input" else 2
        if where.shape[0] > mask.shape[axis]:
            mask = self.found[kind] = np.repeat(mask, where.shape[0], axis=axis)
        place = mask[row] if kind == "input" else mask[row, layer]
        place[(..., head, 0) if mask.ndim == 6 else (..., 0)] |= where

    def positions(self, pos: Any) -> Bool[np.ndarray, "prompt pos"]:
        """Where the tokens at these positions are. One row if it is the same in all prompts."""
        if pos is None:
            return np.ones((1, self._real.shape[1]), bool)
        if isinstance(pos, slice):
            if pos.step not in (None, 1):
                raise UserError(f"positions {pos} cannot have a step: give them as a list")
            ends = [
                default if end is None else end + self._length * (end < 0)
                for end, default in ((pos.start, 0), (pos.stop, self._length))
            ]
            return (self._at >= ends[0]) & (self._at < ends[1]) & self._real
        array = np.asarray(pos)
        if array.dtype == bool:
            shapes = [self._real.shape[1:], (self._prompts, self._real.shape[1])]
            if array.shape not in shapes:
                raise UserError(f"a mask of positions has shape {shapes[0]} or {shapes[1]}, got {array.shape}")
            return np.atleast_2d(array)
        shortest = int(self._length.min())
        if array.dtype.kind not in "iu" or array.ndim > 1 or (array < -shortest).any() or (array >= shortest).any():
            raise UserError(f"positions {pos!r}: the shortest prompt has the positions {-shortest} to {shortest - 1}")
        chosen = np.where(array < 0, array + self._length[..., None], array).reshape(len(self._length), 1, -1)
        return (self._at[..., None] == chosen).any(axis=-1) & self._real
