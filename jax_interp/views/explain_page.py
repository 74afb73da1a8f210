"""The page of an explained prediction: coloured tokens, what was found, components ranked, and each resample."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence

from markupsafe import Markup
from matplotlib.figure import Figure

from jax_interp.views.page import render_page
from jax_interp.views.style import svg
from jax_interp.views.tokens import token_cell


@dataclasses.dataclass(frozen=True)
class ExplainPage:
    """The content of the page.

    Args:
      title: the question.
      model: the name of the model.
      tokens: the tokens of the prompt.
      surprise: -log p of each token in nats; NaN where there is none.
      position: where the prediction is made.
      top: (token, probability) of the most likely tokens there.
      summary: what was found, in sentences.
      chosen: the components of the set.
      ranked: (component, mean drop of the logit difference, standard deviation), the largest drop first.
      grid: the heat map of these drops.
      resamples: (the end of another prompt, its own logit difference, the logit difference with the set resampled from
        it, with everything resampled from it).
    """

    title: str
    model: str
    tokens: Sequence[str]
    surprise: Sequence[float]
    position: int
    top: Sequence[tuple[str, float]]
    summary: Sequence[str]
    chosen: Sequence[str]
    ranked: Sequence[tuple[str, float, float]]
    grid: Figure
    resamples: Sequence[tuple[str, float, float, float]]


def explain_page(page: ExplainPage) -> str:
    """Render the page as one HTML document."""
    values = {field.name: getattr(page, field.name) for field in dataclasses.fields(page)}
    strongest = max((x for x in page.surprise if math.isfinite(x)), default=1.0) or 1.0
    cells = []
    for i, (token, surprise) in enumerate(zip(page.tokens, page.surprise)):
        known = math.isfinite(surprise)
        title = f"surprise {surprise:.2f} nats" if known else "no prediction"
        cells.append(token_cell(token, surprise / strongest if known else 0.0, title, i == page.position))
    values["cells"] = Markup("<wbr>").join(cells)
    values["grid"] = svg(page.grid, "fall of the logit difference for each component")
    return render_page("explain.html.j2", **values)
