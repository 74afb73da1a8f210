"""`Labelled`: an array whose axes have names, and whose entries along an axis have labels. Results are of this class.

grid = Labelled(values, {"layer": range(4), "pos": tokens}, "logit difference")
grid.sel(layer=2)                  without the axis `layer`
grid.mean("pos")                   any of mean, std, min, max, over one axis or several
grid.to_pandas(), grid.to_xarray() xarray and pandas are optional
"""

from __future__ import annotations

import dataclasses
import html
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from jax_interp.core.errors import UserError

if TYPE_CHECKING:
    import pandas  # pyright: ignore[reportMissingImports]
    import xarray  # pyright: ignore[reportMissingImports]


@dataclasses.dataclass(frozen=True, eq=False)
class Labelled:
    """A NumPy array with named axes.

    Args:
      values: the array.
      axes: for each axis of `values`, in order, its name and the labels of its entries. Labels need not differ: two
        positions can have the same token.
      name: what the values are, with a unit if they have one.
    """

    values: np.ndarray
    axes: Mapping[str, Sequence[Any]]
    name: str = "value"

    def __post_init__(self):
        object.__setattr__(self, "values", np.asarray(self.values))
        object.__setattr__(self, "axes", {name: tuple(labels) for name, labels in self.axes.items()})
        sizes = tuple(len(labels) for labels in self.axes.values())
        if sizes != self.values.shape:
            raise UserError(f"{self.name}: the axes {dict(zip(self.axes, sizes))} do not fit {self.values.shape}")

    @property
    def shape(self) -> tuple[int, ...]:
        return self.values.shape

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> np.ndarray:
        return np.array(self.values, dtype=dtype, copy=copy)

    def axis(self, name: str) -> int:
        """The number of an axis. Raises `UserError` if there is none of this name."""
        if name not in self.axes:
            raise UserError(f"{self.name} has no axis {name!r}; its axes are {', '.join(self.axes) or 'none'}")
        return list(self.axes).index(name)

    def sel(self, **indices: int | slice | Sequence[int]) -> Labelled:
        """Select along axes, by index. An integer removes its axis.

        Args:
          indices: the name of an axis, and an index, a slice or a list of indices.

        Raises:
          UserError: there is no such axis, or an index is out of range.
        """
        found = self
        for name, index in indices.items():
            i, labels = found.axis(name), found.axes[name]
            kept = np.arange(len(labels))[index] if isinstance(index, slice) else np.asarray(index)
            kept = kept.astype(int) if kept.size == 0 else kept
            if kept.dtype.kind not in "iu" or (kept < -len(labels)).any() or (kept >= len(labels)).any():
                raise UserError(f"{name}={index!r}: the axis has the indices 0 to {len(labels) - 1}")
            axes = {key: old for key, old in found.axes.items() if kept.ndim or key != name}
            if kept.ndim:
                axes[name] = tuple(labels[k] for k in kept.tolist())
            found = Labelled(np.take(found.values, kept, axis=i), axes, found.name)
        return found

    def mean(self, *names: str) -> Labelled:
        """The mean over these axes; over all axes if none is named."""
        return self._reduced("mean", names)

    def std(self, *names: str, ddof: int = 1) -> Labelled:
        """The standard deviation over these axes. `ddof=1` (the default) divides by n - 1."""
        return self._reduced("std", names, ddof=ddof)

    def min(self, *names: str) -> Labelled:
        """The minimum over these axes."""
        return self._reduced("min", names)

    def max(self, *names: str) -> Labelled:
        """The maximum over these axes."""
        return self._reduced("max", names)

    def _reduced(self, how: str, names: Sequence[str], **kwargs: Any) -> Labelled:
        chosen = tuple(self.axis(name) for name in (names or self.axes))
        kept = {name: labels for i, (name, labels) in enumerate(self.axes.items()) if i not in chosen}
        return Labelled(getattr(np, how)(self.values, axis=chosen, **kwargs), kept, self.name)

    def largest(self, n: int = 10) -> list[tuple[dict[str, Any], float]]:
        """The n entries of largest absolute value: (label on each axis, value), in descending order."""
        flat = self.values.reshape(-1)
        order = np.argsort(-np.abs(flat), kind="stable")[:n]
        places = zip(*(index.tolist() for index in np.unravel_index(order, self.shape)))
        names = list(self.axes)
        return [
            ({name: self.axes[name][i] for name, i in zip(names, place)}, float(value))
            for place, value in zip(places, flat[order])
        ]

    def to_xarray(self) -> xarray.DataArray:
        """An `xarray.DataArray`. Labels become coordinates. Needs `pip install jax_interp[xarray]`."""
        try:
            import xarray  # pyright: ignore[reportMissingImports]
        except ImportError as error:
            raise UserError("to_xarray needs xarray: pip install 'jax_interp[xarray]'") from error
        coordinates = {name: np.asarray(labels) for name, labels in self.axes.items()}
        return xarray.DataArray(self.values, coords=coordinates, dims=list(self.axes), name=self.name)

    def to_pandas(self) -> pandas.DataFrame:
        """A `pandas.DataFrame` with one row for each entry, and a column for each axis. Needs pandas."""
        try:
            import pandas  # pyright: ignore[reportMissingImports]
        except ImportError as error:
            raise UserError("to_pandas needs pandas: pip install 'jax_interp[xarray]'") from error
        places = np.indices(self.shape).reshape(len(self.axes), -1)
        columns = {name: [labels[i] for i in at] for (name, labels), at in zip(self.axes.items(), places.tolist())}
        return pandas.DataFrame({**columns, self.name: self.values.reshape(-1)})

    def __repr__(self) -> str:
        axes = ", ".join(f"{name}: {len(labels)}" for name, labels in self.axes.items())
        return f"Labelled({self.name!r}, {axes or 'no axes'})\n{self.values!r}"

    def _repr_html_(self) -> str:
        """A table of the last two axes for a notebook. Labels are escaped."""
        if not 1 <= self.values.ndim <= 2 or self.values.size > 10_000:
            return f"<pre>{html.escape(repr(self))}</pre>"
        rows = self.values if self.values.ndim == 2 else self.values[None]
        names = list(self.axes)
        heads = self.axes[names[-1]]
        left = self.axes[names[0]] if self.values.ndim == 2 else ("",)
        cell = lambda tag, text: f"<{tag}><bdi>{html.escape(str(text))}</bdi></{tag}>"
        limit = float(np.nanmax(np.abs(rows), initial=0.0)) or 1.0
        corner = cell("th", " × ".join(names))
        lines = [f"<tr>{corner}{''.join(cell('th', head) for head in heads)}</tr>"]
        for label, row in zip(left, rows):
            cells = "".join(
                f'<td style="background:rgba({"37,99,235" if v >= 0 else "234,88,12"},{0.6 * abs(v) / limit:.2f})">'
                f"{v:.3g}</td>"
                for v in np.nan_to_num(row.astype(float))
            )
            lines.append(f"<tr>{cell('th', label)}{cells}</tr>")
        return f"<table><caption>{html.escape(self.name)}</caption>{''.join(lines)}</table>"
