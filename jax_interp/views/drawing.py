"""A figure that notebooks display and that can be saved."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from markupsafe import Markup
from matplotlib import rc_context
from matplotlib.figure import Figure

from jax_interp.core.atomic_write import atomic_write
from jax_interp.core.errors import UserError
from jax_interp.views.style import RC, svg


@dataclass(frozen=True, eq=False, repr=False)
class Drawing:
    """A matplotlib figure, displayed by notebooks as SVG on a light background.

    Attributes:
      figure: the figure.
      label: what it shows, for screen readers.
    """

    figure: Figure
    label: str

    def save(self, path: str | Path) -> Path:
        """Write the figure to a file. The suffix chooses the format: .svg, .png or .pdf."""
        path = Path(path)
        formats = self.figure.canvas.get_supported_filetypes()
        if path.suffix[1:] not in formats:
            raise UserError(f"{str(path)!r} has no suffix of a picture; use one of {', '.join(sorted(formats))}")
        if path.suffix == ".svg":
            return atomic_write(path, str(svg(self.figure, self.label)))
        with rc_context(RC):
            self.figure.savefig(path, facecolor="white", dpi=200)
        return path

    def _repr_html_(self) -> str:
        return Markup(
            '<div style="background: #fff; color: #1f2429; padding: 0.5em; overflow-x: auto">{}</div>'
        ).format(svg(self.figure, self.label))

    def __repr__(self) -> str:
        return f"Drawing({self.label!r})"
