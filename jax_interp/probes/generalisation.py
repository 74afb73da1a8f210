"""The generalisation matrix: probes fitted on some sets, judged on all of them.

    sets = {name: gather(model, data, "blocks.*.resid_post") for name, data in ...}
    matrix = generalisation_matrix(MassMean(), sets, {"both": ("cities", "negated cities")})
    matrix.auroc                     Labelled [centring, train, test, site]
    print("\\n".join(matrix.lines()))

Each figure is given twice: for the activations as they are, and after each set's own mean was subtracted. The second
uses the mean of the test set, which a probe in use does not have. It makes transfer look good: it repairs every shift
between sets, and with it thresholds that do not carry over. (Marks & Tegmark 2023, arXiv:2310.06824, centre each set.)
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from jaxtyping import Bool, Float, Int

from jax_interp.core.errors import UserError
from jax_interp.core.labelled import Labelled
from jax_interp.probes.controls import Fitting, directions, scores_of
from jax_interp.probes.gather import Vectors
from jax_interp.probes.joined_sets import joined
from jax_interp.probes.kind import Kind
from jax_interp.probes.labelled_tokens import LabelledTokens
from jax_interp.probes.measures import auroc
from jax_interp.probes.splits import group_split, leaking_groups

ORACLE = "the test set itself"
"""The row of probes that were fitted on the training part of the set they are judged on: what is possible there."""
CENTRINGS = ("as they are", "each set centred")


@dataclasses.dataclass(frozen=True, eq=False)
class Generalisation:
    """What probes of one set are worth on another. Figures are means over seeds of the splits.

    Args:
      auroc: the AUROC, `[centring, train, test, site]`. The last row of `train` is `ORACLE`.
      accuracy: the same for the accuracy at the threshold from training data.
      cosine: between the directions of two rows, `[centring, train, other, site]`, without `ORACLE`. None: the probes
        have no single direction.
      trained_on: the sets of each row.
    """

    auroc: Labelled
    accuracy: Labelled
    cosine: Labelled | None
    trained_on: Mapping[str, tuple[str, ...]]

    def lines(self, site: str | None = None) -> list[str]:
        """Tables of AUROC / accuracy, one for each centring.

        Args:
          site: a site. None: the mean over sites.

        Raises:
          UserError: there is no such site.
        """
        sites = list(self.auroc.axes["site"])
        if site is not None and site not in sites:
            raise UserError(f"no site {site!r}; there are {', '.join(sites)}")
        pick = lambda values: values.mean(axis=-1) if site is None else values[..., sites.index(site)]
        area, share = pick(self.auroc.values), pick(self.accuracy.values)
        tests, rows = self.auroc.axes["test"], self.auroc.axes["train"]
        first = max(map(len, rows))
        out = []
        for number, centring in enumerate(CENTRINGS):
            out.append(f"AUROC / accuracy, activations {centring}, {'mean over sites' if site is None else site}")
            out.append(" " * first + "".join(f"  {name[:16]:>16}" for name in tests))
            for row, name in enumerate(rows):
                cells = (f"{area[number, row, c]:.3f} / {share[number, row, c]:.3f}" for c in range(len(tests)))
                out.append(f"{name:<{first}}" + "".join(f"  {cell:>16}" for cell in cells))
        return out

    def to_json(self) -> dict[str, Any]:
        return {
            "axes": {name: list(labels) for name, labels in self.auroc.axes.items()},
            "auroc": self.auroc.values.tolist(),
            "accuracy": self.accuracy.values.tolist(),
            "cosine": None if self.cosine is None else self.cosine.values.tolist(),
            "trained_on": {row: list(sets) for row, sets in self.trained_on.items()},
        }


def generalisation_matrix(
    kind: Kind,
    sets: Mapping[str, Vectors],
    train: Mapping[str, Sequence[str]] | None = None,
    *,
    together: str | None = None,
    test: float = 0.2,
    seeds: Sequence[int] = (0, 1, 2),
) -> Generalisation:
    """Fit on each row of sets, and judge on each set.

    A set that was fitted on is judged on its test part, another set on all its examples. An example is left out where
    its text was fitted on as part of another set.

    Args:
      kind: a binary kind that reads rows, with at most one strength.
      sets: activations of sets with the same classes, at the same sites and for one token rule.
      train: further rows: sets that are fitted on together, by name. Each set alone is always a row.
      together: a column that all sets have and that leaks between them, such as the city of a statement and of its
        negation. Its values are then never divided between fitting and judging, and all sets are judged on their test
        parts only. None: sets share nothing that leaks, apart from equal texts within a set.
      test: the share of the test part.
      seeds: of the splits.

    Raises:
      UserError: the sets do not fit together, a row names no set, or the kind has several strengths.
    """
    rows = {name: (name,) for name in sets} | {name: tuple(members) for name, members in (train or {}).items()}
    _check(kind, sets, rows)
    names = list(sets)
    data = joined([one.data for one in sets.values()], "all sets")
    of_set = np.repeat(np.arange(len(names)), [len(one.data) for one in sets.values()])
    tests = _tests(data, [one.data for one in sets.values()], together, test, seeds)
    member = {row: np.isin(of_set, [names.index(name) for name in members]) for row, members in rows.items()}
    parts = np.stack([own & ~held for own in member.values() for held in tests])
    known = _known(data, parts).reshape(len(rows), len(seeds), -1)
    shape = (len(CENTRINGS), len(rows) + 1, len(names), len(next(iter(sets.values())).sites))
    areas, shares, cosines = np.zeros(shape), np.zeros(shape), []
    fit = Fitting(kind, (0,), 1)
    for number, centring in enumerate(CENTRINGS):
        on = _all(data, sets, of_set, centring == CENTRINGS[1])
        fitted = fit((on,), parts)
        scores = scores_of(fitted, (on,))
        values = scores.values[:, 0, 0, :, 0, 0].reshape(shape[-1], len(rows), len(seeds), -1)
        right = (scores.positive == (data.labels == 1))[:, 0, 0, :, 0, 0].reshape(values.shape)
        for row, own in enumerate(member.values()):
            for column in range(len(names)):
                seen = bool(own[of_set == column].any()) or together is not None
                for seed, held in enumerate(tests):
                    judged = (of_set == column) & ~known[row, seed] & (held if seen else True)
                    areas[number, row, column] += auroc(values[:, row, seed][:, judged], data.labels[judged] == 1)
                    shares[number, row, column] += right[:, row, seed][:, judged].mean(axis=-1)
        cosines.append(_cosines(directions(fitted), len(rows), len(seeds)))
    for figures in (areas, shares):
        figures /= len(seeds)
        figures[:, -1] = figures[:, np.arange(len(names)), np.arange(len(names))]
    sites = next(iter(sets.values())).sites
    axes = {"centring": CENTRINGS, "train": (*rows, ORACLE), "test": tuple(names), "site": sites}
    between = {"centring": CENTRINGS, "train": tuple(rows), "other": tuple(rows), "site": sites}
    found = None if cosines[0] is None else Labelled(np.stack(cosines), between, "cosine of directions")
    return Generalisation(Labelled(areas, axes, "AUROC"), Labelled(shares, axes, "accuracy"), found, rows)


def _tests(
    data: LabelledTokens, sets: Sequence[LabelledTokens], together: str | None, test: float, seeds: Sequence[int]
) -> Bool[np.ndarray, "seed example"]:
    """The test part of all sets."""
    if together is None:
        return np.concatenate([group_split(one, test, seeds).test for one in sets], axis=1)
    if together not in data.columns:
        raise UserError(f"not all sets have a column {together!r}; they share {', '.join(data.columns) or 'none'}")
    groups = np.unique([str(value) for value in data.columns[together]], return_inverse=True)[1]
    return group_split(dataclasses.replace(data, groups=groups), test, seeds).test


def _known(data: LabelledTokens, parts: Bool[np.ndarray, "part example"]) -> Bool[np.ndarray, "part example"]:
    """Whether the text of each example is also in a part."""
    text = leaking_groups(dataclasses.replace(data, groups=None, pairs=None))
    return np.stack([np.isin(text, text[part]) for part in parts])


def _all(
    data: LabelledTokens, sets: Mapping[str, Vectors], of_set: Int[np.ndarray, " example"], centred: bool
) -> Vectors:
    """The activations of all sets, one set after the other."""
    first = next(iter(sets.values()))
    values: dict[str, Float[np.ndarray, "rule example d"]] = {}
    for site in first.sites:
        each = [np.asarray(one.values[site]) for one in sets.values()]
        if centred:
            each = [x - x.mean(axis=1, keepdims=True, dtype=np.float64).astype(x.dtype) for x in each]
        values[site] = np.concatenate(each, axis=1)
    return dataclasses.replace(first, data=data, values=values)


def _cosines(units: np.ndarray | None, rows: int, seeds: int) -> np.ndarray | None:
    """[row, other, site], averaged over the splits."""
    if units is None:
        return None
    each = units[:, 0, 0, :, 0, 0].reshape(len(units), rows, seeds, -1)
    return np.einsum("crsd,cosd->rocs", each, each).mean(axis=-1)


def _check(kind: Kind, sets: Mapping[str, Vectors], rows: Mapping[str, Sequence[str]]) -> None:
    if not sets:
        raise UserError("give at least one set")
    if kind.takes != "rows" or kind.target != "binary" or len(kind.strengths) > 1:
        raise UserError(
            f"{type(kind).__name__} must read one vector for each example, tell two classes apart and have at most one "
            "strength: choose the strength first (evaluate_probes does)"
        )
    first, *others = sets.items()
    for name, one in (first, *others):
        if len(one.rules) != 1 or len(one.data.classes) != 2:
            raise UserError(
                f"{name} has {len(one.rules)} token rules and {len(one.data.classes)} classes: give 1 and 2"
            )
        if one.sites != first[1].sites or one.rules != first[1].rules:
            raise UserError(f"{name} and {first[0]} were read at different sites or tokens")
    for row, members in rows.items():
        if unknown := [name for name in members if name not in sets]:
            raise UserError(f"the row {row!r} names the set {unknown[0]!r}; there are {', '.join(sets)}")
        if not members or row == ORACLE:
            raise UserError(f"the row {row!r} needs at least one set, and another name than {ORACLE!r}")
