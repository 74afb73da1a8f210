"""`FeatureData`: everything that a page shows about some units. A unit is a latent, a component, a neuron, a probe.

    data = collect_features(model, "blocks.6.resid_pre", sae, batches)
    data.density                          the fraction of kept positions at which each unit is on
    data.examples[0].windows.tokens       the contexts of the strongest activations, [unit, k, window]
    data.write("runs/sae/features")       FeatureData.read reads it back

All arrays are NumPy arrays with one row for each shown unit, in the order of `units`. What was not measured is None.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Float, Int

from jax_interp.core.errors import UserError
from jax_interp.dashboards.windows import Windows


@dataclasses.dataclass(frozen=True)
class Histogram:
    """A histogram for each unit.

    Args:
      edges: the edges of the bins, ascending: one row for all units, or a row for each unit.
      counts: the number of values in each bin.
    """

    edges: Float[np.ndarray, "*unit bin+1"]
    counts: Int[np.ndarray, "unit bin"]


@dataclasses.dataclass(frozen=True)
class TokenEffects:
    """Tokens of each unit with the changes of their logits, the largest change first."""

    tokens: Int[np.ndarray, "unit n"]
    effects: Float[np.ndarray, "unit n"]


@dataclasses.dataclass(frozen=True)
class Neighbours:
    """Other units that are like a unit, the most alike first.

    Args:
      units: their indices in the whole dictionary. -1 where a unit has fewer.
      values: how alike they are.
      measure: what the values are, in words.
    """

    units: Int[np.ndarray, "unit n"]
    values: Float[np.ndarray, "unit n"]
    measure: str


@dataclasses.dataclass(frozen=True)
class Examples:
    """A group of examples of every unit.

    Args:
      label: what the group is: "top", "lowest", "quantile 0.9–1.0", "uniform".
      windows: the examples.
      loss_effects: the change of -log p (in nats) of each token of the window when the unit is ablated at all positions
        of its sequence. 0 for the first token of a sequence and for blanks. NaN where the example was not measured.
      token_effects: the change of the unit's score at the peak when the embedding of this token is set to 0. 0 after
        the peak and for blanks. NaN where the example was not measured.
    """

    label: str
    windows: Windows
    loss_effects: Float[np.ndarray, "unit k window"] | None = None
    token_effects: Float[np.ndarray, "unit k window"] | None = None


@dataclasses.dataclass(frozen=True)
class FeatureData:
    """Statistics and examples of some units.

    Args:
      units: the indices of the units.
      name: what a unit is, in one word: "feature", "component", "neuron".
      title: the title of the page.
      model: the name of the model.
      address: the address of the value that the units belong to.
      text: the name of the text.
      tokens_seen: the number of kept positions.
      firings: the number of kept positions at which the unit is on.
      max_activation: the largest score. 0 for a unit that is never on.
      min_activation: the smallest score, or 0 if no score is negative. NaN: not known.
      mean_activation_when_on: the mean of the scores that are on. 0 for a unit that is never on. NaN: not known.
      activation_histogram: the scores that are on. The edge of a bin that is nearer to 0 belongs to it.
      examples: groups of examples.
      promoted: the tokens whose logits grow most if the unit's decoder direction goes straight to the unembedding.
      suppressed: the tokens whose logits fall most, the largest fall first.
      logit_histogram: these changes over the whole vocabulary.
      neighbours: units with similar decoder directions.
      co_firing: units that are on at the same positions.
      loss_effect: the mean change of -log p (in nats) of the token after a firing when the unit is ablated at all
        positions, over the measured uniform examples. NaN for a unit without such an example.
      strings: the text of every token that occurs in the data. Empty: not known.
    """

    units: Int[np.ndarray, " unit"]
    name: str
    title: str
    model: str
    address: str
    text: str
    tokens_seen: int
    firings: Int[np.ndarray, " unit"]
    max_activation: Float[np.ndarray, " unit"]
    min_activation: Float[np.ndarray, " unit"]
    mean_activation_when_on: Float[np.ndarray, " unit"]
    activation_histogram: Histogram | None = None
    examples: tuple[Examples, ...] = ()
    promoted: TokenEffects | None = None
    suppressed: TokenEffects | None = None
    logit_histogram: Histogram | None = None
    neighbours: Neighbours | None = None
    co_firing: Neighbours | None = None
    loss_effect: Float[np.ndarray, " unit"] | None = None
    strings: Mapping[int, str] = dataclasses.field(default_factory=dict)

    def __post_init__(self) -> None:
        n, seen = len(self.units), self.tokens_seen
        for name, array in self.arrays():
            if name != "activation_histogram.edges" and (not array.ndim or len(array) != n):
                raise UserError(f"{name} has shape {array.shape}, for {n} units")
        if n and (self.units.min() < 0 or len(np.unique(self.units)) != n):
            raise UserError("units must be different indices from 0 on")
        if n and not 0 <= self.firings.min() <= self.firings.max() <= seen:
            raise UserError(f"firings must be from 0 to tokens_seen = {seen}")
        for group in self.examples:
            w = group.windows
            shape, arrays = w.tokens.shape, (w.scores, w.activations, group.loss_effects, group.token_effects)
            wrong = [one.shape for one in arrays if one is not None and one.shape != shape]
            if wrong or w.peak.shape != shape[:2] or not 0 <= w.before < shape[2]:
                raise UserError(f"examples {group.label!r}: arrays {wrong}, peak {w.peak.shape} for tokens {shape}")
        if len({group.label for group in self.examples}) != len(self.examples):
            raise UserError("two groups of examples have one label")

    @property
    def density(self) -> Float[np.ndarray, " unit"]:
        """The fraction of kept positions at which each unit is on."""
        return self.firings / max(self.tokens_seen, 1)

    def density_histogram(self, bins_per_decade: int = 4) -> Histogram:
        """The number of units by their density, in one row. Units that are never on are not counted.

        Edges are powers of 10^(1/bins_per_decade). The highest is 1.
        """
        density = self.density[self.firings > 0]
        lowest = np.floor(np.log10(density.min())) if len(density) else -1.0
        edges = 10 ** np.linspace(lowest, 0, round(-lowest) * bins_per_decade + 1) if lowest < 0 else np.array([0.1, 1])
        return Histogram(edges, np.histogram(np.clip(density, edges[0], 1), edges)[0][None])

    def arrays(self) -> Iterator[tuple[str, np.ndarray]]:
        """All arrays with their names: "units", "promoted.tokens", "examples.0.windows.peak", ..."""
        for field in dataclasses.fields(self):
            if field.name != "examples":
                yield from _arrays(field.name, getattr(self, field.name))
        for i, group in enumerate(self.examples):
            yield from _arrays(f"examples.{i}", group)

    def with_strings(self, strings: Mapping[int, str]) -> FeatureData:
        """The data with the text of its tokens. Of `strings`, only the tokens that occur are kept.

        Raises:
          UserError: a token has no string.
        """
        used = self.token_ids().tolist()
        if missing := [token for token in used if token not in strings]:
            raise UserError(f"there are no strings for the tokens {missing[:5]}: give the strings of this tokenizer")
        return dataclasses.replace(self, strings={token: strings[token] for token in used})

    def token_ids(self) -> Int[np.ndarray, " token"]:
        """The ids of all tokens that occur in the data, ascending."""
        found = [group.windows.tokens for group in self.examples]
        found += [effects.tokens for effects in (self.promoted, self.suppressed) if effects is not None]
        ids = np.unique(np.concatenate([part.reshape(-1) for part in found])) if found else np.zeros(0, np.int64)
        return ids[ids >= 0]

    def to_json(self) -> dict[str, Any]:
        """The data as JSON values: objects by field, lists for arrays, and None for numbers that are not finite.

        The keys of `strings` are the ids as text. "density" is there too.
        """
        return {**_json(self), "density": _json(self.density)}

    def write(self, directory: Path | str) -> Path:
        """Write the data to `features.safetensors` and `features.json` in `directory`. Returns the directory."""
        from jax_interp.dashboards.feature_files import write_feature_data

        return write_feature_data(self, directory)

    @classmethod
    def read(cls, directory: Path | str) -> FeatureData:
        """Read what `write` wrote.

        Raises:
          UserError: a file is missing, was changed, or is of another kind.
        """
        from jax_interp.dashboards.feature_files import read_feature_data

        return read_feature_data(directory)


def _arrays(name: str, value: Any) -> Iterator[tuple[str, np.ndarray]]:
    if isinstance(value, np.ndarray):
        yield name, value
    elif dataclasses.is_dataclass(value):
        for field in dataclasses.fields(value):
            yield from _arrays(f"{name}.{field.name}", getattr(value, field.name))


def _json(value: Any) -> Any:
    if isinstance(value, np.ndarray):
        if value.dtype.kind == "f" and not (finite := np.isfinite(value)).all():
            value = value.astype(object)
            value[~finite] = None
        return value.tolist()
    if dataclasses.is_dataclass(value):
        return {field.name: _json(getattr(value, field.name)) for field in dataclasses.fields(value)}
    if isinstance(value, Mapping):
        return {str(key): _json(one) for key, one in value.items()}
    return [_json(one) for one in value] if isinstance(value, tuple) else value
