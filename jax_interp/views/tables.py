"""Tables for the terminal, made from plain data."""

from __future__ import annotations

import re
import sys
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from jax_interp.core.terminal import printable


def format_number(value: Any) -> str:
    """Format a number: 0.1234, 12.34, 4,096. None and NaN give a dash. Other values are converted to strings."""
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


def reads_and_writes(reads: str | Sequence[str], writes: str | Sequence[str] | None) -> str:
    """The addresses that a dictionary reads and writes, as text for a heading.

    Args:
      reads: one or several addresses. Addresses that differ only in the layer are joined: `blocks.0,1,2.mlp_out`.
      writes: the addresses that the dictionary writes; None if it writes the same addresses that it reads.
    """

    def together(names: str | Sequence[str]) -> str:
        names = (names,) if isinstance(names, str) else tuple(names)
        parts = [re.fullmatch(r"(\D*)(\d+)(.*)", name) for name in names]
        around = {part.group(1, 3) for part in parts if part}
        if len(names) == 1 or not all(parts) or len(around) > 1:
            return ", ".join(names)
        before, after = around.pop()
        return before + ",".join(part.group(2) for part in parts if part) + after

    return together(reads) + ("" if writes is None else f" to {together(writes)}")


def evaluation_rows(result: Mapping[str, Any]) -> list[tuple[str, str, str]]:
    """The rows of the table of an evaluation.

    Args:
      result: the JSON values of an evaluation of a dictionary.

    Returns:
      Triples (quantity, formatted number, meaning).
    """
    r, d, c = result["reconstruction"], result["density"], result["cross_entropy"]
    score = lambda name, meaning: _score(c, name, meaning)
    best = "1: as good as the unchanged model"
    share = f"{100 * d['dead'] / max(d['features'], 1):.1f} %"
    layers = result.get("layers", ())
    return [
        (
            "L0",
            format_number(r["l0"]),
            f"active latents per token{f', summed over all {len(layers)} sources' if layers else ''}",
        ),
        *_fvu_rows(result),
        ("cosine", format_number(r["cosine"]), "between activation and reconstruction"),
        ("norm ratio", format_number(r["l2_ratio"]), "‖x̂‖ / ‖x‖"),
        ("CE, clean", format_number(c["clean"]), "nats per token, unchanged model"),
        ("CE, spliced", format_number(c["spliced"]), "activation replaced by the reconstruction"),
        ("CE, mean-ablated", format_number(c["mean_ablated"]), "activation replaced by its mean"),
        ("CE, zero-ablated", format_number(c["zero_ablated"]), "activation replaced by zero"),
        ("recovered, of mean", *score("recovered_mean", f"{best}, 0: no better than the mean")),
        ("recovered, of zero", *score("recovered_zero", f"{best}, 0: no better than zero")),
        ("KL, spliced", *score("kl_spliced", "nats per token, from the unchanged model")),
        *(_replaced_rows(result["replacement"]) if "replacement" in result else ()),
        ("dead features", f"{d['dead']:,} of {d['features']:,} ({share})", f"never fired on {d['window']:,} tokens"),
        ("dense features", format_number(d["above_10_percent"]), "fire on more than 10 % of tokens"),
        ("self-check", "exact", "splicing the identity gives exactly the clean CE"),
    ]


def _score(cross_entropy: Mapping[str, Any], name: str, meaning: str) -> tuple[str, str]:
    """(formatted number, meaning) of a figure, or ("undefined", the reason)."""
    reason = cross_entropy.get("undefined", {}).get(name)
    return (format_number(cross_entropy[name]), meaning) if reason is None else ("undefined", reason)


def _fvu_rows(result: Mapping[str, Any]) -> list[tuple[str, str, str]]:
    """FVU with and without the first positions, whose activations can be far longer than all others."""
    meaning, first = "fraction of variance unexplained, centred", result.get("skip_first", 0)
    fvu = format_number(result["reconstruction"]["fvu"])
    number = lambda name: format_number(result[name]["fvu"])
    if first:
        of_first = "position" if first == 1 else f"{first} positions"
        return [
            ("FVU", fvu, f"{meaning}, without the first {of_first}, as in training"),
            ("FVU, all positions", number("reconstruction_all"), "the longest activations count most"),
        ]
    if result.get("reconstruction_after_first") is None:
        return [("FVU", fvu, meaning)]
    return [
        ("FVU", fvu, f"{meaning}; the longest activations count most"),
        ("FVU, after first", number("reconstruction_after_first"), "the same, without the first position"),
    ]


def passes(data: Mapping[str, int]) -> str:
    """How often a text was seen in training, in one sentence.

    Args:
      data: {"tokens": seen in training, "text_tokens": in the training part of the text}.
    """
    times = data["tokens"] / max(data["text_tokens"], 1)
    seen = f"{data['tokens']:,} tokens, {format_number(float(f'{times:.3g}'))} times the {data['text_tokens']:,} tokens"
    return f"trained on {seen} of the text" + ("" if times <= 10 else ": more text would be better than more steps")


def _replaced_rows(p: Mapping[str, Any]) -> list[tuple[str, str, str]]:
    return [
        (
            "CE, replacement",
            format_number(p["cross_entropy"]),
            "as spliced, but inputs come from the replaced layers, so errors accumulate",
        ),
        ("recovered, replacement", *_score(p, "recovered_mean", "compared with mean ablation")),
        ("KL, replacement", format_number(p["kl"]), "nats per token, from the unchanged model"),
    ]


def value_rows(result: Mapping[str, Any]) -> tuple[list[str], list[tuple[str, ...]]]:
    """A table with one row for each value that a dictionary reads or writes.

    Args:
      result: the JSON values of an evaluation of a dictionary.

    Returns:
      The headings and the rows. Both are empty if there is only one value.
    """
    if "layers" in result:
        row_of = lambda layer: (
            layer["reads"],
            layer["writes"],
            format_number(layer["fvu"]),
            format_number(layer["l0"]),
            format_number(layer["dead"]),
        )
        return ["reads", "writes", "FVU", "L0", "dead"], [row_of(layer) for layer in result["layers"]]
    fvu = result["fvu_by_value"]
    if len(fvu) < 2:
        return [], []
    return ["writes", "FVU"], [(name, format_number(value)) for name, value in fvu.items()]


def print_evaluation(result: Mapping[str, Any], title: str) -> None:
    """Print the evaluation of a dictionary, given as JSON values."""
    print_table(["", ("", "right"), ""], evaluation_rows(result), title=title)
    columns, rows = value_rows(result)
    if rows:
        names = ("reads", "writes")
        print_table([name if name in names else (name, "right") for name in columns], rows, title="for each value")


def print_table(
    columns: Sequence[str | tuple[str, str]], rows: Iterable[Sequence[str]], title: str | None = None
) -> None:
    """Print a table.

    Args:
      columns: for each column its heading, or (heading, "right") to align the column to the right.
      rows: the cells of each row.
      title: a line above the table.
    """
    from rich import box
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    plain = lambda text: Text(printable(text))  # Text: brackets in a name or a token are not markup
    heading = None if title is None else plain(title)
    table = Table(box=box.SIMPLE_HEAD, title=heading, title_justify="left", pad_edge=False)
    for i, column in enumerate(columns):
        heading, justify = (column, "left") if isinstance(column, str) else column
        table.add_column(plain(heading), justify=justify, overflow="fold", no_wrap=i == 0)  # type: ignore[arg-type]
    for row in rows:
        table.add_row(*map(plain, row))
    Console(width=None if sys.stdout.isatty() else 200).print(table)  # wide output for files, to avoid line breaks
