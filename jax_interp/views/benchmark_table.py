"""The table of the benchmarks of a dictionary, from JSON values, for the terminal."""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from jax_interp.core.terminal import print_text
from jax_interp.views.tables import print_table


def estimate(value: Mapping[str, Any] | None) -> str:
    """An estimate as text: "0.712 [0.690, 0.734]". Without an interval: "0.712"; not defined: a dash."""
    if value is None or value["value"] is None:
        return "–"
    size = abs(value["value"])
    digits = 3 if size < 10 else 1
    number = lambda x: f"{x:.{digits}f}"
    if value["low"] is None or value["high"] is None:
        return number(value["value"])
    return f"{number(value['value'])} [{number(value['low'])}, {number(value['high'])}]"


def benchmark_rows(figures: Mapping[str, Any]) -> tuple[list[str], list[list[str]]]:
    """The headings and the rows of the table: one row for each measure, one column for each coder.

    Args:
      figures: the JSON values of a benchmark.
    """
    coders = list(dict.fromkeys(name for measure in figures["measures"] for name in measure["estimates"]))
    headings = ["", "better", *coders, "better than random?"]
    rows = [
        [
            measure["name"] + (" (!)" if measure["warning"] else ""),
            measure["better"],
            *(estimate(measure["estimates"].get(coder)) for coder in coders),
            measure["better_than_random"] or "–",
        ]
        for measure in figures["measures"]
    ]
    return headings, rows


def print_benchmark(figures: Mapping[str, Any], title: str) -> None:
    """Print the table of a benchmark, what each figure means, what its interval is over, and what was left out."""
    headings, rows = benchmark_rows(figures)
    if rows:
        print_table([headings[0], *((name, "right") for name in headings[1:])], rows, title=title)
        print_text("Intervals have a level of 95 %. Latents that are not 0, per token: " + _by_coder(figures["l0"]))
    for _, alike in itertools.groupby(figures["measures"], key=lambda measure: measure["meaning"]):
        for line in _explanation(list(alike)):
            print_text(line)
    for task, reason in figures["left_out"].items():
        print_text(f"  not measured: {task}: {reason}")
    if unused := figures["tables"]["unused"]:
        print_text(f"  {len(unused)} tables were not used, such as {next(iter(unused.values()))}")


def _explanation(measures: Sequence[Mapping[str, Any]]) -> Iterator[str]:
    """What measures of one kind mean, what their intervals are over, and how reliable they are."""
    first = measures[0]
    name = first["name"] if len(measures) == 1 else first["name"].split(",")[0]
    over = next(iter(first["estimates"].values()))["over"]
    yield f"  {name}: {first['meaning']}. The interval is over {over}."
    if first["warning"]:
        spreads = [f"{100 * m['spread']:.0f} %" for m in measures if m.get("spread") is not None]
        here = f"; here the standard deviation over reseeds is {', '.join(spreads)} of the mean" if spreads else ""
        yield f"    (!) {first['warning']}{here}"


def _by_coder(l0: Mapping[str, float]) -> str:
    return ", ".join(f"{name} {value:.1f}" for name, value in l0.items())
