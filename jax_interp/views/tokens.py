"""Tokens in HTML: coloured by how strongly something fired on them, marked where two texts differ.

Everything that comes from outside (a token is any string at all) is escaped: `Markup.format` does it.
"""

from __future__ import annotations

import re
from collections.abc import Sequence

from markupsafe import Markup


def coloured(
    tokens: Sequence[str],
    strengths: Sequence[float],
    strongest: float,
    peak: int,
    titles: Sequence[str] | None = None,
) -> Markup:
    """A context as three cells: what comes before `peak`, the token itself, what comes after. Each token has a
    background as opaque as its strength is of `strongest`, so that contexts below one another line up at their peaks.
    `titles` are shown where the mouse rests; without them the strengths are.
    """
    titles = [f"{strength:.3g}" for strength in strengths] if titles is None else titles
    cells = [
        token_cell(token, strength / strongest if strongest > 0 else 0.0, title, i == peak)
        for i, (token, strength, title) in enumerate(zip(tokens, strengths, titles, strict=True))
    ]
    parts = (Markup("").join(part) for part in (cells[:peak], cells[peak : peak + 1], cells[peak + 1 :]))
    return Markup('<code class="left"><span>{}</span></code><code>{}</code><code class="right">{}</code>').format(
        *parts
    )


def token_cell(token: str, share: float, title: str, peak: bool = False) -> Markup:
    """One token; `share` of full colour, from 0 to 1."""
    share = min(max(share, 0.0), 1.0)
    classes, text = "t peak" if peak else "t", spaced(token)
    if share == 0.0:
        return Markup('<span class="{}">{}</span>').format(classes, text)
    return Markup('<span class="{}" style="--a:{:.2f}" title="{}">{}</span>').format(classes, share, title, text)


def spaced(token: str) -> str:
    """Runs of five spaces or more as a count: `⏎············` becomes `⏎·₁₂`."""
    return re.sub("·{5,}", lambda run: "·" + str(len(run[0])).translate(SUBSCRIPTS), token)


SUBSCRIPTS = str.maketrans("0123456789", "₀₁₂₃₄₅₆₇₈₉")


def compared(tokens: Sequence[str], reference: Sequence[str] | None, start: int = 0) -> Markup:
    """Text as it reads, tokens from `start` on that are not those of `reference` at the same place marked.

    Tokens are the texts themselves (newlines and all), for a `<pre>`. Once two texts part, all that follows is another
    text, so the first difference and everything after it is marked.
    """
    parted = next(
        (i for i in range(start, len(tokens)) if reference is not None and tokens[i : i + 1] != reference[i : i + 1]),
        len(tokens),
    )
    prompt, same, other = ("".join(tokens[a:b]) for a, b in ((0, start), (start, parted), (parted, len(tokens))))
    out = Markup('<span class="prompt">{}</span>{}').format(prompt, same)
    return out + (Markup('<span class="other">{}</span>').format(other) if other else Markup(""))
