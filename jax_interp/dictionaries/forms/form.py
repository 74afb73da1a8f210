"""The base class of forms. It defines how a dictionary is described in a file (storage.py).

A new form is one file in this folder that registers itself:

    @FORMS.register
    @register_dataclass
    @dataclasses.dataclass(frozen=True)
    class MyForm(Form): ...
"""

from __future__ import annotations

import abc
import dataclasses
from collections.abc import Mapping
from typing import Any, Self, cast

import jax
import numpy as np
from jaxtyping import Array

from jax_interp.core.errors import UserError
from jax_interp.core.registry import Registry
from jax_interp.core.short_repr import ShortRepr
from jax_interp.dictionaries.activations import ACTIVATIONS, Activation

Description = dict[str, Any]
"""JSON values by name."""
Arrays = dict[str, Array]
Shape = tuple[int, ...]


class Form(ShortRepr):
    """Base class of forms. A subclass is a frozen dataclass and a pytree, with a `b_dec`."""

    b_dec: Array

    @abc.abstractmethod
    def describe(self) -> tuple[Description, Arrays]:
        """Return what `from_description` needs: sizes and settings as JSON values, and the arrays by name."""
        raise NotImplementedError(f"{type(self).__name__} cannot be saved: it has no describe")

    @classmethod
    @abc.abstractmethod
    def from_description(cls, description: Mapping[str, Any], arrays: Arrays) -> Self:
        """Rebuild the dictionary from the result of `describe`. Raises UserError if an array is missing or has a wrong
        shape, and KeyError, TypeError or ValueError if the description is invalid."""
        raise NotImplementedError(f"{cls.__name__} cannot be loaded: it has no from_description")


FORMS = Registry("form of dictionary", Form)


def describe_activation(activation: Activation) -> tuple[Description, Arrays]:
    """Return the class name and settings of an activation as JSON values, and its arrays by name."""
    known = _saved_classes()
    if type(activation) not in known.values():
        raise UserError(f"cannot save the activation {type(activation).__name__}: registered are {', '.join(known)}")
    fields = {field.name: getattr(activation, field.name) for field in dataclasses.fields(activation)}
    arrays = {name: a for name, a in fields.items() if isinstance(a, (jax.Array, np.ndarray))}
    settings = {name: value for name, value in fields.items() if name not in arrays}
    named = {f"activation.{name}": a for name, a in arrays.items()}
    return {"type": type(activation).__name__} | settings, cast(Arrays, named)


def read_activation(settings: Any, arrays: Arrays, n_features: int) -> Activation:
    """Rebuild an activation from the result of `describe_activation`. Raises UserError if its class is not known, or a
    setting has another type or is out of range."""
    known = _saved_classes()
    kind = known.get(str(settings.get("type"))) if isinstance(settings, dict) else None
    if kind is None:
        raise UserError(f"the activation {settings!r} is not known; this version knows {', '.join(known)}")
    fields = {name: value for name, value in settings.items() if name != "type"}
    for field in dataclasses.fields(kind):
        value = fields.get(field.name, field.default)
        types = (float, int) if type(field.default) is float else (type(field.default),)
        if type(field.default) in (bool, int, float) and type(value) not in types:
            raise UserError(f"the activation's {field.name} is {value!r}, which is not {types[0].__name__}")
        if field.default is None and value is not None:  # an array, which is a tensor and no setting
            raise UserError(f"the activation's {field.name} is {value!r}, which is not null")
    fields |= {name.removeprefix("activation."): a for name, a in arrays.items() if name.startswith("activation.")}
    try:
        activation = kind(**fields)
    except TypeError as error:
        raise UserError(f"the activation {settings!r} does not fit {kind.__name__}: {error}") from error
    if activation.k is not None and not 1 <= activation.k <= n_features:
        raise UserError(
            f"the activation's k is {activation.k}; with {n_features} features it is from 1 to {n_features}"
        )
    return activation


def check_shapes(arrays: Arrays, shapes: Mapping[str, Shape]) -> None:
    """Raise UserError if an array is missing or has another shape."""
    for name, shape in shapes.items():
        if name not in arrays or arrays[name].shape != shape:
            found = arrays[name].shape if name in arrays else f"missing; it has {', '.join(sorted(arrays))}"
            raise UserError(f"{name} should have shape {shape}, but it is {found}")


def optional_shapes(arrays: Arrays, prefix: str, d_in: int, d_out: int, n_features: int) -> dict[str, Shape]:
    """The expected shapes of the optional arrays: `W_skip` and the arrays of the activation. An array of an activation
    holds one number per feature, or a single number for all features."""
    skip = {prefix + "W_skip": (d_in, d_out)} if prefix + "W_skip" in arrays else {}
    of_activation = {name: a for name, a in arrays.items() if name.startswith(prefix + "activation.")}
    return skip | {name: a.shape if a.size == 1 else (n_features,) for name, a in of_activation.items()}


def _saved_classes() -> dict[str, type[Activation]]:
    """The activation classes that a dictionary can hold, by name."""
    return {kind.trained_class().__name__: kind.trained_class() for kind in ACTIVATIONS}
