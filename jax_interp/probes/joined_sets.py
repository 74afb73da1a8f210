"""Several labelled sets as one."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from jax_interp.core.errors import UserError
from jax_interp.probes.labelled_tokens import LabelledTokens
from jax_interp.probes.splits import leaking_groups


def joined(sets: Sequence[LabelledTokens], name: str) -> LabelledTokens:
    """All examples of some sets, one set after the other.

    Groups of different sets stay different groups. Columns that all sets have are kept. Spans and labels of tokens are
    not.

    Args:
      sets: sets with the same classes, padded on the right.
      name: the name of the result.

    Raises:
      UserError: there is no set, the classes differ, or padding is on the left.
    """
    if not sets:
        raise UserError("give at least one set")
    classes = sets[0].classes
    for one in sets:
        if one.classes != classes:
            raise UserError(f"{one.name} has the classes {', '.join(one.classes)}; {sets[0].name} {', '.join(classes)}")
        if not one.mask[:, 0].all():
            raise UserError(f"{one.name} has padding on the left: give sets that are padded on the right")
    length = max(one.tokens.shape[1] for one in sets)
    padded = lambda array: np.pad(array, ((0, 0), (0, length - array.shape[1])))
    groups, first = [], 0
    for one in sets:
        groups.append(first + leaking_groups(one))
        first = int(groups[-1].max()) + 1
    starts = np.cumsum([0, *map(len, sets)])
    pairs = [one.pairs + start for one, start in zip(sets, starts) if one.pairs is not None and len(one.pairs)]
    columns = [column for column in sets[0].columns if all(column in one.columns for one in sets)]
    return LabelledTokens(
        name,
        np.concatenate([padded(one.tokens) for one in sets]),
        np.concatenate([padded(one.mask) for one in sets]),
        np.concatenate([padded(one.readable) for one in sets]),
        np.concatenate([one.labels for one in sets]),
        classes,
        np.concatenate(groups),
        np.concatenate(pairs) if pairs else None,
        columns={column: tuple(value for one in sets for value in one.columns[column]) for column in columns},
        texts=tuple(text for one in sets for text in one.texts) if all(one.texts for one in sets) else (),
    )
