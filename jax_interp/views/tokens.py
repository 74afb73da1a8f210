"""Tokens in HTML: coloured by the strength of an activation, or marked where two texts differ.

A token can be any string. So `Markup.format` escapes all text, control characters are shown as escapes, and `<bdi>`
isolates the direction of each text.
"""

from __future__ import annotations

import re
from collections.abc import Sequence

from markupsafe import Markup

from jax_interp.core.terminal import printable


def coloured(
    tokens: Sequence[str],
    strengths: Sequence[float],
    strongest: float,
    peak: int,
    titles: Sequence[str] | None = None,
) -> Markup:
    """A context as three cells: the tokens before the peak, the token at the peak, and the tokens after the peak.

    In a list of contexts, the peaks are therefore aligned.

    Args:
      tokens: the tokens of the context.
      strengths: one number for each token. The opacity of the background of a token is `strength / strongest`.
      strongest: the strength that gives full colour.
      peak: the position of the token in the middle cell.
      titles: the tooltip of each token. None: the strengths.
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
    """One token, with a background of `share` of full colour, from 0 to 1."""
    share = min(max(share, 0.0), 1.0)
    classes, text = "t peak" if peak else "t", spaced(printable(token))
    if share == 0.0:
        return Markup('<bdi class="{}">{}</bdi>').format(classes, text)
    return Markup('<bdi class="{}" style="--a:{:.2f}" title="{}">{}</bdi>').format(
        classes, share, printable(title), text
    )


def signed_cell(token: str, value: float, largest: float) -> Markup:
    """One token, blue if its number is above 0 and orange if it is below. `largest` has full colour; NaN has none."""
    text = spaced(printable(token))
    if value != value or largest <= 0:
        return Markup("<bdi>{}</bdi>").format(text)
    share, name = min(abs(value) / largest, 1.0), "up" if value > 0 else "down"
    return Markup('<bdi class="{}" style="--a:{:.2f}" title="{:.3g}">{}</bdi>').format(name, share, value, text)


def isolated(text: str) -> Markup:
    """Text that does not change the direction of its neighbours."""
    return Markup("<bdi>{}</bdi>").format(printable(text, keep="\n\t"))


def isolated_token(token: str) -> Markup:
    """A token with long runs of spaces as a count, isolated."""
    return isolated(spaced(printable(token)))


def spaced(token: str) -> str:
    """Replace runs of five spaces or more by a count: `⏎············` becomes `⏎·₁₂`."""
    return re.sub("·{5,}", lambda run: "·" + str(len(run[0])).translate(SUBSCRIPTS), token)


SUBSCRIPTS = str.maketrans("0123456789", "₀₁₂₃₄₅₆₇₈₉")


def compared(tokens: Sequence[str], reference: Sequence[str] | None, start: int = 0) -> Markup:
    """A text in which the tokens from the first difference to another text on are marked.

    Args:
      tokens: the tokens of the text, with real newlines, for a `<pre>`.
      reference: the tokens of the other text. None: nothing is marked.
      start: the tokens before this position are the prompt. They are not compared.
    """
    parted = next(
        (i for i in range(start, len(tokens)) if reference is not None and tokens[i : i + 1] != reference[i : i + 1]),
        len(tokens),
    )
    prompt, same, other = ("".join(tokens[a:b]) for a, b in ((0, start), (start, parted), (parted, len(tokens))))
    parts = [("prompt", prompt), ("same", same), ("other", other)]
    element = lambda name, text: Markup('<bdi class="{}">{}</bdi>').format(name, printable(text, keep="\n\t"))
    return Markup("").join(element(name, text) for name, text in parts if text)
