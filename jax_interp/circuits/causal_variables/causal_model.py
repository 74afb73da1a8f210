"""`CausalModel`: what a network might compute, as variables with parents and functions.

    model = CausalModel(
        {
            "w": Variable(range(4)), "x": Variable(range(4)), "y": Variable(range(4)), "z": Variable(range(4)),
            "left": Variable((False, True), lambda w, x: w == x),
            "right": Variable((False, True), lambda y, z: y == z),
            "answer": Variable((False, True), lambda left, right: left == right),
        },
        output="answer",
    )
    model.run({"w": [0, 1], "x": 1, "y": 2, "z": 2})["answer"]      array([False, True])

A function's parameters are the parents of its variable. Functions get NumPy arrays with one entry for each setting, so
a million settings are one call of each function (Geiger et al. 2021, arXiv:2106.02997).
"""

from __future__ import annotations

import dataclasses
import difflib
import graphlib
import inspect
import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import numpy as np

from jax_interp.core.errors import UserError

Setting = Mapping[str, Any]
"""Values by variable: numbers, texts or booleans, or arrays with one entry for each setting."""
Values = dict[str, np.ndarray]
MOST_SETTINGS = 10_000_000


@dataclasses.dataclass(frozen=True)
class Numbers:
    """The domain of a variable with numeric values: all finite numbers from `low` to `high`.

    An input without both bounds can be set, but not drawn at random.
    """

    low: float = -math.inf
    high: float = math.inf

    def __post_init__(self) -> None:
        if not self.low < self.high:
            raise UserError(f"Numbers({self.low}, {self.high}): the first bound must be below the second one")


@dataclasses.dataclass(frozen=True)
class Variable:
    """A variable of a causal model.

    Args:
      values: the values that it can take: numbers, booleans or texts. Or `Numbers(low, high)`.
      fn: its value as a function of its parents. It gets an array for each parent, and returns an array. None: the
        variable is an input.
      parents: the names of the parents, in the order of the function's parameters. None: the parameters' own names.
      elementwise: the function takes single values instead of arrays. It is then called once for each distinct
        combination of the parents' values.
    """

    values: Sequence[Any] | Numbers
    fn: Callable[..., Any] | None = None
    parents: Sequence[str] | None = None
    elementwise: bool = False

    @property
    def domain(self) -> np.ndarray | None:
        """The values as an array; None for numbers."""
        return None if isinstance(self.values, Numbers) else np.asarray(list(self.values))


@dataclasses.dataclass(frozen=True)
class CausalModel:
    """Variables and their functions, checked: every parent exists, and no variable depends on itself.

    Args:
      variables: the variables by name.
      output: the variable that the network's answer is compared with.

    Raises:
      UserError: a name does not exist, there is a cycle, or a domain is empty, mixed or repeats a value.
    """

    variables: Mapping[str, Variable]
    output: str

    def __post_init__(self) -> None:
        object.__setattr__(self, "variables", dict(self.variables))
        for name, variable in self.variables.items():
            _check_domain(name, variable)
        graph = {name: self.parents(name) for name in self.variables}
        for name, parents in graph.items():
            for parent in parents:
                self._known(parent, f"the parents of {name!r}")
        try:
            order = tuple(graphlib.TopologicalSorter(graph).static_order())
        except graphlib.CycleError as error:
            raise UserError(f"the variables depend on each other in a cycle: {' -> '.join(error.args[1])}") from error
        object.__setattr__(self, "_order", order)
        self._known(self.output, "output=")
        if self.output in self.inputs:
            raise UserError(f"output={self.output!r} is an input: give it a function, or name a variable that has one")

    def parents(self, name: str) -> tuple[str, ...]:
        """The parents of a variable, in the order of its function's parameters."""
        variable = self.variables[name]
        if variable.fn is None:
            if variable.parents:
                raise UserError(f"{name!r} has parents {tuple(variable.parents)} and no function")
            return ()
        parents = tuple(inspect.signature(variable.fn).parameters if variable.parents is None else variable.parents)
        if not parents:
            raise UserError(f"the function of {name!r} has no parents: a variable without parents is an input")
        return parents

    @property
    def inputs(self) -> tuple[str, ...]:
        """The variables without a function."""
        return tuple(name for name, variable in self.variables.items() if variable.fn is None)

    def run(self, setting: Setting) -> Values:
        """The values of all variables.

        Args:
          setting: a value, or an array of values, for each input. Single values go with every entry of the arrays.

        Returns:
          By variable, an array of the common shape of the inputs: () or [setting].

        Raises:
          UserError: an input is missing, a name is no input, or a value is outside its domain.
        """
        return self.intervene(setting, {})

    def intervene(self, setting: Setting, fixed: Setting) -> Values:
        """The values of all variables where some are set by hand; their own functions are not used.

        Args:
          setting: the inputs, as in `run`.
          fixed: values, or arrays of values, for any variables.
        """
        for name in fixed:
            self._known(name, "the intervention")
        computed = [name for name in setting if self._known(name, "the setting") not in self.inputs]
        if computed:
            raise UserError(f"{computed} are computed, not inputs: set them by intervene(setting, {{name: value}})")
        missing = [name for name in self.inputs if name not in setting and name not in fixed]
        if missing:
            raise UserError(f"the setting has no value for the inputs {missing}")
        given = {name: self._checked(name, value) for name, value in {**setting, **fixed}.items()}
        try:
            shape = np.broadcast_shapes(*(value.shape for value in given.values()))
        except ValueError as error:
            shapes = {name: value.shape for name, value in given.items()}
            raise UserError(
                f"the values have the shapes {shapes}: give single values, or arrays of one length"
            ) from error
        if len(shape) > 1:
            raise UserError(f"the values have {len(shape)} axes: give single values, or one entry for each setting")
        found: Values = {}
        for name in self._order:  # type: ignore[attr-defined]
            found[name] = np.broadcast_to(given[name], shape) if name in given else self._computed(name, found, shape)
        return {name: found[name] for name in self.variables}

    def interchange(self, base: Setting, sources: Mapping[str | tuple[str, ...], Setting]) -> Values:
        """The values for `base` where some variables have the values that they have in other settings.

        Args:
          base: the inputs.
          sources: by variable, or by a tuple of variables, the setting that its value is taken from.

        Returns:
          The counterfactual values of all variables.

        Example:
            model.interchange(base, {"left": first, "right": second})["answer"]
        """
        fixed: Values = {}
        for names, source in sources.items():
            names = (names,) if isinstance(names, str) else names
            values = self.run(source)
            for name in names:
                self._known(name, "the interchange")
                if name in fixed:
                    raise UserError(f"{name!r} has two sources")
                fixed[name] = values[name]
        return self.intervene(base, fixed)

    def sample(self, n: int, seed: int | np.random.Generator = 0) -> Values:
        """Draw settings. Every input is independent and uniform over its values.

        Raises:
          UserError: an input has numbers without bounds.
        """
        rng = np.random.default_rng(seed)
        drawn = {}
        for name in self.inputs:
            variable = self.variables[name]
            if isinstance(variable.values, Numbers):
                low, high = variable.values.low, variable.values.high
                if not math.isfinite(high - low):
                    raise UserError(f"{name!r} can be any number: give Numbers(low, high), or settings of your own")
                drawn[name] = rng.uniform(low, high, n)
            else:
                drawn[name] = variable.domain[rng.integers(len(variable.values), size=n)]  # type: ignore[index]
        return drawn

    def all_settings(self) -> Values:
        """Every setting of the inputs, which have finite domains. The last input changes fastest.

        Raises:
          UserError: an input is numeric, or there are more than ten million settings.
        """
        domains = {name: self.variables[name].domain for name in self.inputs}
        numeric = [name for name, domain in domains.items() if domain is None]
        if numeric:
            raise UserError(f"{numeric} have infinitely many values: draw settings with sample(n)")
        sizes = [len(domain) for domain in domains.values()]  # type: ignore[arg-type]
        if math.prod(sizes) > MOST_SETTINGS:
            raise UserError(f"there are {math.prod(sizes):,} settings: draw some with sample(n)")
        places = np.indices(sizes).reshape(len(sizes), -1)
        return {name: domain[at] for (name, domain), at in zip(domains.items(), places)}  # type: ignore[index]

    def _known(self, name: str, where: str) -> str:
        if name not in self.variables:
            near = difflib.get_close_matches(str(name), self.variables, n=1)
            hint = f"; did you mean {near[0]!r}?" if near else ""
            raise UserError(f"{where}: there is no variable {name!r}; there are {', '.join(self.variables)}{hint}")
        return name

    def _computed(self, name: str, found: Values, shape: tuple[int, ...]) -> np.ndarray:
        variable, parents = self.variables[name], [found[parent] for parent in self.parents(name)]
        assert variable.fn is not None
        try:
            result = _by_combination(variable.fn, parents, shape) if variable.elementwise else variable.fn(*parents)
            value = np.asarray(result)
        except Exception as error:
            hint = "" if variable.elementwise else (
                ". Functions get arrays: write & and np.where instead of `and` and `if`, or give elementwise=True"
            )  # fmt: skip
            raise UserError(f"the function of {name!r} failed: {type(error).__name__}: {error}{hint}") from error
        if value.shape not in ((), shape):
            raise UserError(f"the function of {name!r} returned the shape {value.shape} for settings of shape {shape}")
        return np.broadcast_to(self._checked(name, value), shape)

    def _checked(self, name: str, values: Any) -> np.ndarray:
        """The values as an array, inside the domain."""
        array, variable = np.asarray(values), self.variables[name]
        if isinstance(variable.values, Numbers):
            if array.dtype.kind not in "iuf":
                raise UserError(f"{name!r} takes numbers, got {array.dtype}")
            inside = np.isfinite(array) & (array >= variable.values.low) & (array <= variable.values.high)
        else:
            domain = variable.domain
            assert domain is not None
            alike = {"U"} if domain.dtype.kind == "U" else set("biuf")
            if array.dtype.kind not in alike:
                raise UserError(f"{name!r} takes values such as {domain.tolist()[:3]}, got {array.dtype}")
            inside = np.isin(array, domain)
        if not inside.all():
            wrong = np.unique(array[~inside] if array.ndim else array[None])[:5].tolist()
            raise UserError(f"{name!r} cannot be {wrong}: its values are {_short(variable)}")
        return array


def _check_domain(name: str, variable: Variable) -> None:
    if isinstance(variable.values, Numbers):
        return
    values = list(variable.values)
    kinds = {
        "text" if isinstance(v, str) else "number" if np.asarray(v).dtype.kind in "biuf" else "other" for v in values
    }
    if not values or len(kinds) > 1 or "other" in kinds:
        raise UserError(f"the values of {name!r} should be numbers and booleans, or texts, at least one: {values[:5]}")
    if isinstance(variable.values, str) or len(set(values)) != len(values):
        raise UserError(f"the values of {name!r} should be a list in which no value is twice: {values[:10]}")


def _short(variable: Variable) -> str:
    if isinstance(variable.values, Numbers):
        return f"finite numbers from {variable.values.low} to {variable.values.high}"
    values = list(variable.values)
    return ", ".join(map(str, values[:8])) + (", ..." if len(values) > 8 else "")


def _by_combination(fn: Callable[..., Any], parents: Iterable[np.ndarray], shape: tuple[int, ...]) -> np.ndarray:
    """`fn` of single values, called once for each distinct combination of the parents' values."""
    flat = [np.broadcast_to(parent, shape).reshape(-1) for parent in parents]
    code = np.zeros(flat[0].shape, np.int64)
    for parent in flat:
        values, number = np.unique(parent, return_inverse=True)
        # Numbered again after each parent, so that the code stays below the number of settings squared.
        code = np.unique(code * len(values) + number.reshape(-1), return_inverse=True)[1].reshape(-1)
    first = np.unique(code, return_index=True)[1]
    results = np.asarray([fn(*(parent[i].item() for parent in flat)) for i in first])
    return results[code].reshape(shape)
