"""`InterchangeData`: counterfactual pairs as inputs of a network, with what it should answer after the interchange.

    data = interchange_data(pairs, encode, {True: yes, False: no}, positions={"last": -1, "x": 1})

`encode` is your function from settings to tokens. Positions have names. A name may stand at another position in each
prompt, and at another one in the base than in its source.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Self

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Int, Num

from jax_interp.circuits.causal_variables.causal_model import Values
from jax_interp.circuits.causal_variables.counterfactuals import Counterfactuals
from jax_interp.core.errors import UserError
from jax_interp.core.pytrees import register_dataclass

Encode = Callable[[Values], Any]
"""Settings, by input variable an array [pair], to inputs of the network: tokens [pair, pos], or rows [pair, ...]."""
Place = int | Sequence[int] | Callable[[Values], Any]
"""A position: one number, one for each pair, or a function of the settings. Negative ones count from the end."""


@register_dataclass
@dataclasses.dataclass(frozen=True)
class InterchangeData:
    """Bases, sources and answers as arrays. `interchange_data` makes it and checks it.

    Args:
      base: the inputs of the bases, [pair, pos] or [pair, ...].
      sources: the inputs of each source, [source, pair, pos] or [source, pair, ...].
      target: the class that the network should predict after the interchange, in the shape of its logits without the
        last axis: [pair, pos], with -1 where the logits are not read, or [pair].
      before: the same for the base without the interchange, as the causal model says.
      positions: by name, the positions in the base and in each source, [1 + source, pair].
      choices: the classes that are compared. None: all of them.
      last_only: whether only the logits of the last position are read.
    """

    base: Num[Array, "pair ..."]
    sources: Num[Array, "source pair ..."]
    target: Int[Array, "pair *pos"]
    before: Int[Array, "pair *pos"]
    positions: Mapping[str, Int[Array, "side pair"]] = dataclasses.field(default_factory=dict)
    choices: Int[Array, " choice"] | None = None
    last_only: bool = dataclasses.field(default=False, metadata={"static": True})

    def __len__(self) -> int:
        return self.base.shape[0]

    def rows(self, index: Any) -> Self:
        """Some of the pairs. `index` is an array of indices, a slice or a mask."""
        index = jnp.arange(len(self))[index] if isinstance(index, slice) else jnp.asarray(index)
        return dataclasses.replace(
            self,
            base=self.base[index],
            sources=self.sources[:, index],
            target=self.target[index],
            before=self.before[index],
            positions={name: at[:, index] for name, at in self.positions.items()},
        )


def interchange_data(
    pairs: Counterfactuals,
    encode: Encode,
    answer: Mapping[Any, int] | Callable[[np.ndarray], Any],
    *,
    positions: Mapping[str, Place] | None = None,
    read_at: Place | None = -1,
    choices: Sequence[int] | None = None,
) -> InterchangeData:
    """Encode counterfactual pairs for a network.

    Args:
      pairs: the pairs.
      encode: from settings to inputs. All prompts of one side have the same length.
      answer: the class (token id) of each value of the output: a mapping, or a function of an array of values.
      positions: positions by name. A function gets the settings of the side that it places.
      read_at: the position whose logits are the answer. None: the network has no positions, and its logits are
        [pair, class].
      choices: the classes that are compared to find the network's answer. None: all.

    Raises:
      UserError: the prompts have different lengths, a position is outside its prompt, or an answer has no class.
    """
    base = _encoded(encode, pairs.base, "bases")
    sources = [_encoded(encode, source, f"sources {i}") for i, source in enumerate(pairs.sources)]
    if len({one.shape for one in sources}) > 1:
        raise UserError(f"the sources have the shapes {[one.shape for one in sources]}: give prompts of one length")
    if (read_at is not None or positions) and base.ndim != 2:
        raise UserError(
            f"the bases have the shape {base.shape}, without positions: give tokens [pair, pos]; or read_at=None"
        )
    target, before = (_classes(answer, values) for values in (pairs.label, pairs.before))
    if choices is not None and not np.isin(np.concatenate([target, before]), choices).all():
        raise UserError(f"choices={list(choices)} lacks some of the answers {np.unique(target).tolist()}")
    last_only = False
    if read_at is not None:
        at = _positions(read_at, pairs.base, base.shape, "read_at")
        last_only = bool((at == base.shape[1] - 1).all())
        target, before = (
            _placed(classes, at, 1 if last_only else base.shape[1], last_only) for classes in (target, before)
        )
    places = {}
    for name, place in (positions or {}).items():
        sides = [(pairs.base, base), *zip(pairs.sources, sources)]
        rows = [
            _positions(_of_side(place, i), setting, x.shape, f"position {name!r}")
            for i, (setting, x) in enumerate(sides)
        ]
        places[name] = jnp.asarray(np.stack(rows), jnp.int32)
    integers = lambda array: jnp.asarray(array, jnp.int32)
    found = None if choices is None else integers(np.unique(choices))
    return InterchangeData(
        jnp.asarray(base), jnp.asarray(np.stack(sources)), integers(target), integers(before), places, found, last_only
    )


def _of_side(place: Place, side: int) -> Place:
    """A position of the base (side 0) or of a source. `[side, pair]` gives each side its own."""
    return np.asarray(place)[side] if not callable(place) and np.ndim(place) == 2 else place


def _encoded(encode: Encode, setting: Values, what: str) -> np.ndarray:
    given, n = encode(setting), len(next(iter(setting.values())))
    if isinstance(given, jax.Array | np.ndarray):
        rows = np.asarray(given)
    else:
        lengths = [np.shape(row) for row in given]
        if len(set(lengths)) > 1:
            first = next(i for i, length in enumerate(lengths) if length != lengths[0])
            raise UserError(
                f"the {what} have different lengths: prompt 0 has {lengths[0]}, prompt {first} has {lengths[first]}. "
                "Values are exchanged position by position: use templates and words with equal numbers of tokens"
            )
        rows = np.asarray(given)
    if rows.ndim < 2 or len(rows) != n or rows.dtype.kind not in "biuf":
        raise UserError(
            f"encode returned {rows.dtype}{list(rows.shape)} for {n} {what}: return tokens [pair, pos] or rows "
            "[pair, ...], one for each entry of the settings' arrays"
        )
    return rows.astype(np.float32 if rows.dtype.kind == "f" else np.int32)


def _classes(answer: Mapping[Any, int] | Callable[[np.ndarray], Any], values: np.ndarray) -> np.ndarray:
    if isinstance(answer, Mapping):
        lacking = [value for value in np.unique(values).tolist() if value not in answer]
        if lacking:
            raise UserError(f"answer= has no class for {lacking[:5]}; it has {list(answer)[:10]}")
        classes = np.asarray([answer[value] for value in values.tolist()])
    else:
        classes = np.asarray(answer(values))
    if classes.shape != values.shape or classes.dtype.kind not in "iu" or (classes < 0).any():
        raise UserError(
            f"answer= should give a class, an integer from 0, for each value, got {classes.dtype}{list(classes.shape)}"
        )
    return classes


def _positions(place: Place, setting: Values, shape: tuple[int, ...], what: str) -> np.ndarray:
    """One position for each pair, from 0."""
    at = np.asarray(place(setting) if callable(place) else place)
    if at.dtype.kind not in "iu" or at.shape not in ((), shape[:1]):
        raise UserError(
            f"{what}: give one integer, or one for each of {shape[0]} pairs, got {at.dtype}{list(at.shape)}"
        )
    outside = (at < -shape[1]) | (at >= shape[1])
    if outside.any():
        raise UserError(f"{what}: {np.unique(at[outside])[:5].tolist()} is outside prompts of {shape[1]} tokens")
    return np.broadcast_to(at % shape[1], shape[:1])


def _placed(classes: np.ndarray, at: np.ndarray, length: int, last_only: bool) -> np.ndarray:
    """[pair, pos]: the class at the position where it is read, -1 elsewhere."""
    target = np.full((len(classes), length), -1)
    target[np.arange(len(classes)), 0 if last_only else at] = classes
    return target
