"""A text whose tokens are coloured by one number each, as HTML."""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path

from markupsafe import Markup

from jax_interp.core.atomic_write import atomic_write
from jax_interp.core.errors import UserError
from jax_interp.core.terminal import printable
from jax_interp.views.style import BLUE, ORANGE
from jax_interp.views.tokens import spaced


@dataclass(frozen=True, repr=False)
class ColouredTokens:
    """Tokens with one number each. Notebooks display it; `save` writes an HTML page.

    Attributes:
      strings: the tokens.
      values: the number of each token.
      title: the heading, or an empty string.
    """

    strings: tuple[str, ...]
    values: tuple[float, ...]
    title: str = ""

    def save(self, path: str | Path) -> Path:
        """Write an HTML page of its own."""
        path = Path(path)
        if path.suffix != ".html":
            raise UserError(f"{str(path)!r}: coloured tokens are saved as .html")
        page = Markup(
            '<!doctype html><html lang="en"><meta charset="utf-8"><meta http-equiv="Content-Security-Policy" '
            "content=\"default-src 'none'; style-src 'unsafe-inline'\"><title>{}</title><body>{}</body></html>"
        )
        return atomic_write(path, str(page.format(self.title or "tokens", Markup(self._repr_html_()))))

    def _repr_html_(self) -> str:
        largest = max((abs(value) for value in self.values if math.isfinite(value)), default=0.0)
        cells = [_cell(text, value, largest) for text, value in zip(self.strings, self.values)]
        heading = Markup("<div>{}</div>").format(self.title) if self.title else Markup("")
        body = Markup('<code style="line-height: 1.9; white-space: pre-wrap">{}</code>').format(Markup("").join(cells))
        return Markup('<div style="background: #fff; color: #1f2429; padding: 0.5em">{}{}</div>').format(heading, body)

    def __repr__(self) -> str:
        return f"ColouredTokens({len(self.strings)} tokens{', ' + repr(self.title) if self.title else ''})"


def _cell(text: str, value: float, largest: float) -> Markup:
    """One token. Its background has the colour of the number's sign, as opaque as the number is large."""
    share = min(abs(value) / largest, 1.0) if largest > 0 and not math.isnan(value) else 0.0
    color = BLUE if value > 0 else ORANGE
    style = Markup(
        "background: color-mix(in srgb, {} {:.0f}%, transparent); padding: 0.15em 0; border-radius: 0.2em"
    ).format(color, 85 * share)
    return Markup('<bdi style="{}" title="{:.4g}">{}</bdi><wbr>').format(style, value, spaced(printable(text)))
