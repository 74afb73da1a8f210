"""Counterfactual data: a base, its sources, and the answer that a causal model gives after the interchange."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
from jaxtyping import Bool, Shaped

from jax_interp.circuits.causal_variables.causal_model import CausalModel, Values
from jax_interp.core.errors import UserError

DRAWS = 50
"""How often pairs are drawn before a quota counts as impossible."""


@dataclasses.dataclass(frozen=True)
class Counterfactuals:
    """Pairs with the answers that the causal model gives.

    Args:
      variables: for each source, the variables whose values are taken from it.
      base: the inputs of the base, by variable, each [pair].
      sources: the inputs of each source.
      label: the output after the interchange, [pair].
      before: the output of the base without the interchange, [pair].
    """

    variables: tuple[tuple[str, ...], ...]
    base: Values
    sources: tuple[Values, ...]
    label: Shaped[np.ndarray, " pair"]
    before: Shaped[np.ndarray, " pair"]

    def __len__(self) -> int:
        return len(self.label)

    @property
    def changed(self) -> Bool[np.ndarray, " pair"]:
        """Where the interchange changes the output."""
        return self.label != self.before

    def rows(self, index: Any) -> Counterfactuals:
        """Some of the pairs."""
        take = lambda values: {name: value[index] for name, value in values.items()}
        sources = tuple(take(source) for source in self.sources)
        return Counterfactuals(self.variables, take(self.base), sources, self.label[index], self.before[index])


def counterfactual_pairs(
    model: CausalModel,
    variables: str | Sequence[str | tuple[str, ...]],
    n: int,
    *,
    changed: float | None = None,
    balanced: bool = False,
    keep: Callable[[Values, tuple[Values, ...]], Any] | None = None,
    settings: Mapping[str, Any] | None = None,
    seed: int = 0,
) -> Counterfactuals:
    """Draw pairs, and find the answer after the interchange.

    Args:
      model: the causal model.
      variables: a variable; or a list with an entry for each source: a variable, or a tuple of variables that are taken
        from this source together.
      n: the number of pairs.
      changed: the share of pairs in which the interchange changes the output. None: as they are drawn. If the output
        rarely changes, a method that exchanges nothing is nearly always right: give 0.5 or more.
      balanced: whether all answers occur equally often. An answer that does not occur in the first draws is left out.
      keep: `keep(values of the base, values of each source) -> [pair]` says which pairs to keep. The values are those
        of all variables.
      settings: settings to draw from, by input. None: `model.sample`. To keep training and test apart, divide
        `model.all_settings()` and give one part here.
      seed: the seed.

    Returns:
      The pairs, in random order.

    Raises:
      UserError: a variable does not exist, or too few pairs with the wanted properties were found.

    Example:
        counterfactual_pairs(model, "left", 1000, changed=0.5)
        counterfactual_pairs(model, ["left", "right"], 1000)      # two sources, one for each
    """
    groups = tuple(
        (v,) if isinstance(v, str) else tuple(v) for v in ([variables] if isinstance(variables, str) else variables)
    )
    if n < 1 or not groups or (changed is not None and not 0 <= changed <= 1):
        raise UserError(
            f"n={n}, variables={variables!r}, changed={changed}: at least 1 of each, and a share from 0 to 1"
        )
    names = [name for group in groups for name in group]
    if len(set(names)) < len(names):
        raise UserError(f"variables={variables!r}: a variable is named twice; it has one source")
    rng = np.random.default_rng(seed)
    rows = None if settings is None else {name: np.atleast_1d(np.asarray(value)) for name, value in settings.items()}
    lengths = {len(value) for value in (rows or {}).values()} - {1}
    if rows is not None and (not rows or len(lengths) > 1):
        raise UserError(f"settings= has arrays of the lengths {sorted(lengths)}: give one entry for each setting")
    quota: dict[tuple[Any, Any], int] = {}
    chosen: list[Counterfactuals] = []
    for _ in range(DRAWS):
        drawn = _draw(model, groups, max(4 * n, 4096), rng, rows, keep)
        if not len(drawn):
            continue
        quota = quota or _quotas(drawn, n, changed, balanced)
        label = drawn.label if balanced else np.zeros(len(drawn), np.int8)
        flag = drawn.changed if changed is not None else np.zeros(len(drawn), bool)
        picked = []
        for (value, is_changed), open_places in quota.items():
            found = np.flatnonzero((label == value) & (flag == is_changed))[:open_places]
            quota[value, is_changed] -= len(found)
            picked.append(found)
        chosen.append(drawn.rows(np.concatenate(picked)))
        if not any(quota.values()):
            break
    missing = {key: count for key, count in quota.items() if count}
    if missing or not quota:
        value, is_changed = next(iter(missing), (None, None))
        what = f" with the answer {value}" * balanced + f" and changed={is_changed}" * (changed is not None)
        raise UserError(
            f"no pairs{what or ''} were found in {DRAWS} draws: ask for another share, or draw other settings"
        )
    return _joined(chosen).rows(rng.permutation(n))


def _quotas(drawn: Counterfactuals, n: int, changed: float | None, balanced: bool) -> dict[tuple[Any, Any], int]:
    """How many pairs to take of each answer, with and without a change."""
    labels = np.unique(drawn.label).tolist() if balanced else [0]
    quota = {}
    for i, value in enumerate(labels):
        of_label = n // len(labels) + (i < n % len(labels))
        if changed is None:
            quota[value, False] = of_label
        else:
            # The rounding differs from answer to answer, so that the sum is the wanted share.
            before = sum(quota.values())
            done = sum(count for (_, flag), count in quota.items() if flag)
            quota[value, True] = round(changed * (before + of_label)) - done
            quota[value, False] = of_label - quota[value, True]
    return quota


def _draw(
    model: CausalModel,
    groups: tuple[tuple[str, ...], ...],
    n: int,
    rng: np.random.Generator,
    rows: Values | None,
    keep: Callable[[Values, tuple[Values, ...]], Any] | None,
) -> Counterfactuals:
    def settings() -> Values:
        if rows is None:
            return model.sample(n, rng)
        length = max((len(value) for value in rows.values()), default=0)
        at = rng.integers(length, size=n) if length else np.zeros(0, int)
        return {name: (value if len(value) == length else np.repeat(value, length))[at] for name, value in rows.items()}

    base, sources = settings(), tuple(settings() for _ in groups)
    before = model.run(base)
    after = model.interchange(base, dict(zip(groups, sources)))
    drawn = Counterfactuals(groups, base, sources, after[model.output], before[model.output])
    if keep is None:
        return drawn
    kept = np.asarray(keep(before, tuple(model.run(source) for source in sources)))
    if kept.dtype != bool or kept.shape != (n,):
        raise UserError(f"keep= should return one boolean for each of {n} pairs, got {kept.dtype}{list(kept.shape)}")
    return drawn.rows(kept)


def _joined(parts: Sequence[Counterfactuals]) -> Counterfactuals:
    join = lambda values: {name: np.concatenate([one[name] for one in values]) for name in values[0]}
    sources = tuple(join(of_source) for of_source in zip(*(part.sources for part in parts)))
    labels = (np.concatenate([getattr(part, name) for part in parts]) for name in ("label", "before"))
    return Counterfactuals(parts[0].variables, join([part.base for part in parts]), sources, *labels)
