"""Tables on the terminal."""

from __future__ import annotations

import sys
from collections.abc import Iterable, Mapping, Sequence
from typing import Any


def figure(value: Any) -> str:
    """A number as it is read: 0.1234, 12.3, 4,096, and a dash for what could not be measured."""
    if value is None:
        return "–"
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        return str(value)
    if isinstance(value, int):
        return f"{value:,}"
    if value != value:
        return "–"
    size = abs(value)
    if size and size < 1e-3:
        return f"{value:.2e}"
    return f"{value:.1f}" if size >= 100 else f"{value:.2f}" if size >= 10 else f"{value:.4f}"


def evaluation_rows(result: Mapping[str, Any]) -> list[tuple[str, str, str]]:
    """`Evaluation.to_json()` as (what, figure, what it means), the rows of a table."""
    r, d, c = result["reconstruction"], result["density"], result["cross_entropy"]
    share = f"{100 * d['dead'] / max(d['features'], 1):.1f} %"
    return [
        ("L0", figure(r["l0"]), "latents on per token"),
        ("FVU", figure(r["fvu"]), "fraction of variance unexplained, centred"),
        ("cosine", figure(r["cosine"]), "between activation and reconstruction"),
        ("norm ratio", figure(r["l2_ratio"]), "‖x̂‖ / ‖x‖"),
        ("CE, clean", figure(c["clean"]), "nats per token, the model as it is"),
        ("CE, spliced", figure(c["spliced"]), "with the reconstruction in place"),
        ("CE, mean-ablated", figure(c["mean_ablated"]), "with the mean activation in place"),
        ("CE, zero-ablated", figure(c["zero_ablated"]), "with zero in place"),
        ("recovered, of mean", figure(c["recovered_mean"]), "1: as good as untouched, 0: no better than the mean"),
        ("recovered, of zero", figure(c["recovered_zero"]), "1: as good as untouched, 0: no better than zero"),
        ("KL, spliced", figure(c["kl_spliced"]), "nats per token, from the model as it is"),
        ("dead features", f"{d['dead']:,} of {d['features']:,} ({share})", f"fired on none of {d['window']:,} tokens"),
        ("dense features", figure(d["above_10_percent"]), "fire on more than 10 % of tokens"),
        ("self-check", "exact", "splicing the identity gives the clean CE to the bit"),
    ]


def evaluation(result: Mapping[str, Any], title: str) -> None:
    """Print what was measured of a dictionary."""
    show(["", ("", "right"), ""], evaluation_rows(result), title=title)


def show(columns: Sequence[str | tuple[str, str]], rows: Iterable[Sequence[str]], title: str | None = None) -> None:
    """Print a table. A column is its heading, or (heading, "right")."""
    from rich import box
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    table = Table(box=box.SIMPLE_HEAD, title=title, title_justify="left", pad_edge=False)
    for i, column in enumerate(columns):
        heading, justify = (column, "left") if isinstance(column, str) else column
        table.add_column(heading, justify=justify, overflow="fold", no_wrap=i == 0)  # type: ignore[arg-type]
    for row in rows:
        table.add_row(*(Text(cell) for cell in row))  # Text: brackets in a token are not markup
    Console(width=None if sys.stdout.isatty() else 200).print(table)  # in a file nothing is folded
