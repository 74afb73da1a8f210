"""The page of an attribution: the check first, then the largest units and heat maps. One self-contained HTML file."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence

from matplotlib.figure import Figure

from jax_interp.views.page import render_page
from jax_interp.views.style import svg


@dataclasses.dataclass(frozen=True)
class AttributionPage:
    """The content of the page.

    Args:
      title: what was attributed.
      facts: name -> value, as text.
      warning: why the estimates cannot be trusted; None if nothing speaks against them.
      check: the lines of the check; empty if there was none.
      estimates: the figure of estimates against effects, if there was a check.
      largest: (unit, mean, standard error), as text, the largest first.
      misses: (unit, estimated, measured), as text, the worst first.
      maps: heading -> heat map.
      prompts: (clean prompt, corrupted prompt) of some pairs.
    """

    title: str
    facts: Mapping[str, str]
    warning: str | None
    check: Sequence[str]
    estimates: Figure | None
    largest: Sequence[tuple[str, str, str]]
    misses: Sequence[tuple[str, str, str]]
    maps: Mapping[str, Figure]
    prompts: Sequence[tuple[str, str]]


def attribution_page(page: AttributionPage) -> str:
    """Render the page as one HTML document."""
    values = {field.name: getattr(page, field.name) for field in dataclasses.fields(page)}
    values["maps"] = {name: svg(figure, f"heat map: {name}") for name, figure in page.maps.items()}
    values["estimates"] = None if page.estimates is None else svg(page.estimates, "estimates against effects")
    return render_page("attribution.html.j2", **values)
