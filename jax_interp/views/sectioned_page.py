"""A page made of sections: tables, figures and coloured texts under headings. One self-contained HTML file."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence

from markupsafe import Markup
from matplotlib.figure import Figure

from jax_interp.core.errors import UserError
from jax_interp.views.page import render_page
from jax_interp.views.style import svg
from jax_interp.views.tokens import signed_cell

WIDE = 5.5
"""A figure that is wider, in inches, has a row of its own."""


@dataclasses.dataclass(frozen=True)
class Table:
    """A table of text.

    Args:
      columns: the headings.
      rows: the cells of each row. The first cell is its name.
      strong: the numbers of rows that are printed in bold.
    """

    columns: Sequence[str]
    rows: Sequence[Sequence[str]]
    strong: frozenset[int] = frozenset()

    def __post_init__(self) -> None:
        for row in self.rows:
            if len(row) != len(self.columns):
                raise UserError(f"a table with the columns {list(self.columns)} has the row {list(row)}")


@dataclasses.dataclass(frozen=True)
class ScoredText:
    """A text with one number for each token.

    Args:
      caption: what the text is.
      tokens: the strings of the tokens.
      scores: the number of each token. NaN where there is none.
    """

    caption: str
    tokens: Sequence[str]
    scores: Sequence[float]


@dataclasses.dataclass(frozen=True)
class Section:
    """One section. What is empty is not shown.

    Args:
      heading: the heading.
      notes: paragraphs below the heading.
      table: a table.
      figures: description -> figure.
      texts: texts whose tokens are coloured: blue above 0, orange below, as strong as the number is large.
      warning: a paragraph in red.
    """

    heading: str
    notes: Sequence[str] = ()
    table: Table | None = None
    figures: Mapping[str, Figure] = dataclasses.field(default_factory=dict)
    texts: Sequence[ScoredText] = ()
    warning: str = ""


def sectioned_page(
    kicker: str, title: str, facts: Mapping[str, str], warnings: Sequence[str], sections: Sequence[Section]
) -> str:
    """Render a page.

    Args:
      kicker: the kind of page, above the title.
      title: the title.
      facts: name -> value, at the top.
      warnings: what must be known before the figures are read.
      sections: the sections, in order.
    """
    shown = [
        {
            "heading": section.heading,
            "notes": section.notes,
            "warning": section.warning,
            "table": section.table,
            "figures": [
                (svg(figure, name), figure.get_size_inches()[0] > WIDE) for name, figure in section.figures.items()
            ],
            "texts": _coloured(section.texts),
        }
        for section in sections
    ]
    return render_page(
        "sectioned_page.html.j2", kicker=kicker, title=title, facts=facts, warnings=warnings, sections=shown
    )


def _coloured(texts: Sequence[ScoredText]) -> list[tuple[str, Markup]]:
    """The texts of one section. The largest number of all of them has full colour."""
    largest = max((abs(s) for text in texts for s in text.scores if s == s), default=0.0)
    found = []
    for text in texts:
        cells = [signed_cell(t, s, largest) for t, s in zip(text.tokens, text.scores, strict=True)]
        found.append((text.caption, Markup("").join(cells)))
    return found
