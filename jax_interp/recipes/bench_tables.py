"""The labelled tables of `bench-dictionary`: which table is for which benchmark, and why others are for none."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any

import numpy as np

from jax_interp.core.errors import UserError
from jax_interp.data.labelled import LabelledTexts, installed_tables, read_labelled, tables_in
from jax_interp.dictionaries.evaluation.benchmarks.probing import FEWEST, check_two_classes

MOST_CLASSES = 10
INSTALLED = "sae-probes"
NO_TEXTS = f"no labelled texts: give --probes with a table, a directory of tables or {INSTALLED}"


@dataclasses.dataclass(frozen=True)
class LabelledTables:
    """Tables by benchmark."""

    two: tuple[LabelledTexts, ...] = ()
    """Two classes: for probing."""
    several: tuple[LabelledTexts, ...] = ()
    """Three to ten classes: for TPP."""
    pairs: tuple[tuple[LabelledTexts, LabelledTexts], ...] = ()
    """The same texts with two labels of two classes: for SCR."""
    unused: dict[str, str] = dataclasses.field(default_factory=dict)
    """The reason for each table that is used for nothing."""


def tables_for(
    probes: str | None, *, label: str | None = None, spurious: str | None = None, most: int = 12
) -> tuple[LabelledTables, dict[str, str]]:
    """Read the tables.

    Args:
      probes: a table, a directory of tables, or "sae-probes"; None: there are none.
      label: the column of labels.
      spurious: a second column of labels.
      most: the largest number of tables of two classes, evenly spaced in the order of their names. The other
        benchmarks use a third as many.

    Returns:
      The tables, and for each benchmark without data the reason.

    Raises:
      UserError: a table cannot be read, or has no such column.
    """
    if probes is None:
        return LabelledTables(), {"probing": NO_TEXTS, "tpp": NO_TEXTS, "scr": NO_TEXTS}
    two, several, pairs = [], [], []
    unused: dict[str, str] = {}
    for path in tables_in(installed_tables() if probes == INSTALLED else probes):
        table = read_labelled(path, label=label)
        reason = _add(table, two, several)
        if reason is not None:
            unused[table.name] = reason
        elif spurious is not None and len(table.classes) == 2:
            other = read_labelled(path, label=spurious)
            check_two_classes(other)
            pairs.append((table, other))
    reasons: dict[str, str] = {}
    if not two:
        reasons["probing"] = f"no table of two classes in {probes}" + "".join(f"; {r}" for r in [*unused.values()][:1])
    if not several:
        reasons["tpp"] = f"no table of 3 to {MOST_CLASSES} classes in {probes}"
    if not pairs:
        reasons["scr"] = "no second labels: name their column with --spurious"
    third = max(most // 3, 1)
    return LabelledTables(_spaced(two, most), _spaced(several, third), _spaced(pairs, third), unused), reasons


def _add(table: LabelledTexts, two: list[LabelledTexts], several: list[LabelledTexts]) -> str | None:
    """Add a table to the list of its benchmark. Returns the reason if it is for none."""
    few = [f"{name!r} has {count} texts" for name, count in table.counts().items() if count < FEWEST]
    if 2 < len(table.classes) <= MOST_CLASSES:
        if few:
            return f"{table.name}: the class {few[0]}; at least {FEWEST} are needed"
        several.append(table)
        return None
    try:
        check_two_classes(table)
    except UserError as error:
        return str(error)
    two.append(table)
    return None


def _spaced(items: Sequence[Any], most: int) -> tuple[Any, ...]:
    places = np.unique(np.linspace(0, len(items) - 1, min(most, len(items))).round().astype(int)) if items else []
    return tuple(items[i] for i in places)
