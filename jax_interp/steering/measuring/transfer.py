"""Transfer: vectors found on some questions, measured on others.

    found = transfer(model, {"plain": v1, "pirate": v2}, {"plain": q1, "pirate": q2})
    found.cells["plain"]["pirate"].relative        the slope of the plain vector on the pirate questions, relative to
                                                   the slope of the vector that was found there

Rows are where a vector was found, columns where it is measured: data sets, templates, system prompts. The questions of
a column must not be those that a vector of any row was found on. Split each set with one seed: copies of a question are
then on one side in all sets.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence

import numpy as np

from jax_interp.core.errors import UserError
from jax_interp.core.estimates import Estimate
from jax_interp.core.labelled import Labelled
from jax_interp.steering.measuring.propensity import STRENGTHS, propensities
from jax_interp.steering.measuring.spread import Spread, mean_of, of_totals, spread
from jax_interp.steering.measuring.steerability import slopes
from jax_interp.steering.measuring.steered_rows import BATCHING, Batching
from jax_interp.steering.questions import Questions
from jax_interp.steering.vector import Steering
from jax_interp.surgery import Model


@dataclasses.dataclass(frozen=True)
class Cell:
    """One vector on one set of questions.

    Args:
      slope: the slopes of the questions.
      anti_steerable: the share of questions with a slope below 0.
      relative: the mean slope divided by the mean slope of the vector that was found on this set. Its interval is over
        draws of the questions. NaN if no vector was found on this set.
      agreement: the correlation of the slopes of the questions with those of that vector. NaN as `relative`.
    """

    slope: Spread
    anti_steerable: Estimate
    relative: Estimate
    agreement: Estimate


@dataclasses.dataclass(frozen=True)
class Transfer:
    """Every vector on every set of questions. `transfer` makes it.

    Args:
      strengths: the strengths.
      cells: where the vector was found -> where it is measured -> figures.
    """

    strengths: tuple[float, ...]
    cells: dict[str, dict[str, Cell]]

    def table(self, figure: str = "slope") -> Labelled:
        """The means of one figure of all cells, as a matrix.

        Args:
          figure: "slope", "anti_steerable", "relative" or "agreement".

        Raises:
          UserError: there is no such figure.
        """
        names = [field.name for field in dataclasses.fields(Cell)]
        if figure not in names:
            raise UserError(f"no figure {figure!r}: there are {', '.join(names)}")
        columns = list(next(iter(self.cells.values())))

        def value(cell: Cell) -> float:
            found = getattr(cell, figure)
            return found.mean.value if isinstance(found, Spread) else found.value

        values = [[value(row[column]) for column in columns] for row in self.cells.values()]
        return Labelled(np.asarray(values), {"found on": tuple(self.cells), "measured on": tuple(columns)}, figure)


def transfer(
    model: Model,
    vectors: Mapping[str, Steering],
    questions: Mapping[str, Questions],
    strengths: Sequence[float] = STRENGTHS,
    *,
    placement: str = "all",
    batching: Batching = BATCHING,
    seed: int = 0,
) -> Transfer:
    """Measure every vector on every set of questions.

    Vectors at the same addresses run the same program.

    Args:
      model: any model from tokens to logits.
      vectors: where a vector was found -> the vector.
      questions: where vectors are measured -> questions on which no vector was found.
      strengths: the strengths, at least two.
      placement: as in `propensities`.
      batching: how rows are put into batches.
      seed: the seed of the bootstrap.

    Raises:
      UserError: there is no vector or no set of questions, or as in `propensities`.
    """
    if not vectors or not questions:
        raise UserError("give at least one vector and one set of questions")
    cells: dict[str, dict[str, Cell]] = {row: {} for row in vectors}
    used: tuple[float, ...] = ()
    for column, asked in questions.items():
        of_row, groups = {}, asked.group_numbers
        for row, vector in vectors.items():
            found = propensities(model, asked, vector, strengths, placement=placement, batching=batching)
            of_row[row], used = slopes(found.strengths, found.values), tuple(found.strengths.tolist())
        for row, own in of_row.items():
            cells[row][column] = _cell(own, of_row.get(column), groups, seed)
    return Transfer(used, cells)


def _cell(own: np.ndarray, there: np.ndarray | None, groups: np.ndarray, seed: int) -> Cell:
    unknown = Estimate(float("nan"), float("nan"), float("nan"))
    relative, agreement = unknown, unknown
    if there is not None:
        divided = lambda a, b: np.where(b != 0, a / np.where(b != 0, b, 1.0), np.nan)
        columns = np.stack([own, there], axis=1)
        relative = of_totals(columns, groups, lambda totals: divided(totals[:, 0], totals[:, 1]), seed=seed)
        agreement = _correlation(own, there, groups, seed)
    return Cell(spread(own, groups, seed=seed), mean_of(own < 0, groups, seed=seed), relative, agreement)


def _correlation(a: np.ndarray, b: np.ndarray, groups: np.ndarray, seed: int) -> Estimate:
    """Pearson's correlation, with its interval over groups. NaN if one of the two is constant."""
    scaled = lambda x: (x - x.mean()) / (x.std() if x.std() > 1e-12 * np.abs(x).max(initial=0.0) else np.inf)
    a, b = scaled(a), scaled(b)
    columns = np.stack([np.ones_like(a), a, b, a * a, b * b, a * b], axis=1)

    def statistic(totals: np.ndarray) -> np.ndarray:
        n, x, y, xx, yy, xy = totals.T
        size = np.sqrt(np.maximum(n * xx - x * x, 0.0) * np.maximum(n * yy - y * y, 0.0))
        return np.where(size > 0, (n * xy - x * y) / np.where(size > 0, size, 1.0), np.nan)

    return of_totals(columns, groups, statistic, seed=seed)
