"""`CausalEffect`: what `causal_effect` found. It keeps the results of single examples. Intervals are over groups."""

from __future__ import annotations

import dataclasses
from typing import Any, Literal

import numpy as np
from jaxtyping import Float, Int

from jax_interp.core.errors import UserError
from jax_interp.core.estimates import Estimate, interval
from jax_interp.core.labelled import Labelled

Way = Literal["positive", "negative"]
"""The class that examples of the other class are moved to."""
_Weights = tuple[Float[np.ndarray, "class 1 example"], Float[np.ndarray, "class draw example"]]


@dataclasses.dataclass(frozen=True, eq=False)
class CausalEffect:
    """The metric of each example, as it is and moved along each direction.

    Args:
      data: the name of the set.
      classes: the names of the two classes. The second one is the positive class.
      labels: the class of each example.
      groups: the group of each example. Intervals are of a bootstrap over groups.
      clean: the metric of each example.
      moved: the metric after the move to the other class: `[direction, sites, alpha, example]`.
      relative_norm: the length of a vector (alpha = 1), divided by the mean length of the values it is added to:
        `[direction, site]`. A move much larger than 1 leaves the activations that the model knows.
      damage: the KL divergence on unrelated text, in nats a token: `[direction, sites, alpha]`. None: not measured.
      controls: the directions that are controls.
    """

    data: str
    classes: tuple[str, ...]
    labels: Int[np.ndarray, " example"]
    groups: Int[np.ndarray, " example"]
    clean: Float[np.ndarray, " example"]
    moved: Labelled
    relative_norm: Labelled
    damage: Labelled | None
    controls: tuple[str, ...]

    def gap(self, draws: int = 1000, seed: int = 0) -> Estimate:
        """E₊ - E₋: how much the model's own answers tell the classes apart."""
        found = [np.subtract(*(weights @ self.clean)[::-1]) for weights in self._weights(draws, seed)]
        return interval(float(found[0][0]), found[1])

    def nie(
        self,
        direction: str,
        to: Way = "positive",
        *,
        sites: str | None = None,
        alpha: float | None = None,
        minus: str | None = None,
        draws: int = 1000,
        seed: int = 0,
    ) -> Estimate:
        """The normalised indirect effect of a move.

        Args:
          direction: the name of the direction.
          to: the class that the examples of the other class are moved to.
          sites: the sites; may be left out if there is one range.
          alpha: the factor; may be left out if there is one.
          minus: another direction, whose effect is subtracted. The interval is that of the paired difference.
          draws: the number of bootstrap samples.
          seed: the seed of the samples.

        Raises:
          UserError: there is no such direction, or the model's own answers do not tell the classes apart: the effect is
            a share of this gap.
        """
        if to not in ("positive", "negative"):
            raise UserError(f'to={to!r}: give "positive" or "negative"')
        weights = self._answered(draws, seed)
        found = self._effect(self._at(direction, sites, alpha), to, weights)
        if minus is not None:
            found = [
                a - b for a, b in zip(found, self._effect(self._at(minus, sites, alpha), to, weights), strict=True)
            ]
        return interval(float(found[0][0]), found[1])

    def rows(self, draws: int = 1000, seed: int = 0) -> list[dict[str, Any]]:
        """One row for each direction, range of sites and alpha: the effects both ways, the length and the damage.

        Raises as `nie`.
        """
        out, axes, weights = [], list(self.moved.axes.values())[:3], self._answered(draws, seed)
        for place in np.ndindex(*map(len, axes)):
            direction, sites, alpha = (labels[i] for labels, i in zip(axes, place, strict=True))
            ways = {to: self._effect(place, to, weights) for to in ("positive", "negative")}
            out.append({
                "direction": direction,
                "sites": sites,
                "alpha": alpha,
                "control": direction in self.controls,
                **{f"to_{to}": interval(float(value[0]), drawn) for to, (value, drawn) in ways.items()},
                "damage": None if self.damage is None else float(self.damage.values[place]),
            })  # fmt: skip
        return out

    def to_json(self) -> dict[str, Any]:
        """All figures as JSON values."""
        plain = lambda value: value.to_json() if isinstance(value, Estimate) else value
        axes = {name: list(labels) for name, labels in self.relative_norm.axes.items()}
        return {
            "data": self.data,
            "classes": list(self.classes),
            "gap": self.gap().to_json(),
            "rows": [{name: plain(value) for name, value in row.items()} for row in self.rows()],
            "relative_norm": {**axes, "values": self.relative_norm.values.tolist()},
        }

    def lines(self) -> list[str]:
        """The effects for a terminal."""
        negative, positive = self.classes
        out = [f"{self.data}: metric of {positive} minus metric of {negative}: {self.gap()}"]
        out.append(f"share of it that a move makes: {negative} -> {positive}; {positive} -> {negative}")
        for row in self.rows():
            what = f"{row['direction']}{' (control)' if row['control'] else ''}, {row['sites']}, alpha {row['alpha']:g}"
            damage = "" if row["damage"] is None else f"; KL on unrelated text {row['damage']:.2g}"
            size = self.relative_norm.values[list(self.relative_norm.axes["direction"]).index(row["direction"])]
            longest = f"|v|/|x| up to {size.max() * abs(row['alpha']):.2f}"
            out.append(f"  {what}: {row['to_positive']}; {row['to_negative']}; {longest}{damage}")
        return out

    def _at(self, *labels: Any) -> tuple[int, ...]:
        """The index of a move."""
        place = []
        for (name, known), label in zip(self.moved.axes.items(), labels, strict=False):
            if label is None and len(known) > 1:
                raise UserError(f"name one entry of {name}: {', '.join(map(str, known))}")
            if label is not None and label not in known:
                raise UserError(f"no {name} {label!r}; there are {', '.join(map(str, known))}")
            place.append(0 if label is None else list(known).index(label))
        return tuple(place)

    def _answered(self, draws: int, seed: int) -> _Weights:
        """The weights. Raises UserError if the model's own answers do not tell the classes apart."""
        own = self.gap(draws, seed)
        if not (own.low > 0 or own.high < 0):
            raise UserError(
                f"the model's metric does not tell {self.classes[1]} from {self.classes[0]} (its difference is {own}), "
                "so there is no gap of which an effect could be a share: choose a metric or a prompt that the model "
                "answers"
            )
        return self._weights(draws, seed)

    def _effect(self, place: tuple[int, ...], to: str, weights: _Weights) -> list[Float[np.ndarray, " draw"]]:
        """The effect in all examples `[1]`, and in each bootstrap sample."""
        start, change = (0 if to == "positive" else 1), self.moved.values[place] - self.clean
        return [
            each[start] @ change / (each[1 - start] @ self.clean - each[start] @ self.clean) for each in weights
        ]  # fmt: skip

    def _weights(self, draws: int, seed: int) -> _Weights:
        """(the share of each example in the mean of its class; the same in each bootstrap sample).

        Groups are drawn within strata of the classes that they have, so every sample has both classes.
        """
        _, group = np.unique(self.groups, return_inverse=True)
        count = int(group.max()) + 1
        has = np.stack([np.bincount(group[self.labels == c], minlength=count) > 0 for c in (0, 1)], axis=1)
        rng, drawn = np.random.default_rng(seed), np.zeros((draws, count))
        for stratum in ([True, False], [False, True], [True, True]):
            members = (has == stratum).all(axis=1)
            if size := int(members.sum()):
                drawn[:, members] = rng.multinomial(size, np.full(size, 1 / size), size=draws)
        of_class = (self.labels == np.array([[0], [1]]))[:, None, :]
        shares = [of_class * each[None] for each in (np.ones((1, len(group))), drawn[:, group])]
        whole, sampled = (share / share.sum(axis=-1, keepdims=True) for share in shares)
        return whole, sampled
