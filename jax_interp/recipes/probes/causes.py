"""Whether a model uses what a probe reads: the answers of a config, and the section of the page."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping

import numpy as np

from jax_interp.core.errors import UserError
from jax_interp.core.estimates import Estimate
from jax_interp.data.tokenizer import Tokenizer
from jax_interp.probes.causal_effect import CausalConfig, ProbabilityDifference
from jax_interp.probes.causal_report import CausalEffect, Way
from jax_interp.probes.report import answered
from jax_interp.probes.report_causes import Answers
from jax_interp.probes.token_rules import TokenRule
from jax_interp.views.probe_plots import effect_bars
from jax_interp.views.sectioned_page import Section, Table


@dataclasses.dataclass(frozen=True)
class AnswerTokens:
    """Next tokens by which the model itself tells the classes apart, at the last token of each text."""

    positive: tuple[str, ...] = ()
    """Texts of single tokens that follow examples of the positive class, such as " TRUE". Empty: nothing is moved."""
    negative: tuple[str, ...] = ()
    """Texts of single tokens that follow examples of the negative class."""
    alphas: tuple[float, ...] = (1.0,)
    """How far activations are moved: 1 moves one class mean to the other."""

    def __post_init__(self) -> None:
        if bool(self.positive) != bool(self.negative):
            raise UserError("answers need tokens of both classes: give positive and negative")

    def answers(self, tokenizer: Tokenizer, rule: TokenRule) -> Answers | None:
        """P(positive tokens) - P(negative tokens) as a metric, with activations moved at the tokens of a rule.

        Raises:
          UserError: a text is not one token, or is an answer of both classes.
        """
        if not self.positive:
            return None
        ids = [[tokenizer.id_of(text) for text in texts] for texts in (self.positive, self.negative)]
        if both := set(ids[0]) & set(ids[1]):
            raise UserError(f"the token {tokenizer.decode(both)!r} is an answer of both classes")
        metric = ProbabilityDifference(*ids)
        return Answers(metric, CausalConfig(rule=rule, alphas=self.alphas))


def causes_section(effects: Mapping[str, CausalEffect]) -> Section:
    """The effects as bars and as a table: each probe, and the spread of each kind of control."""
    rows, bars = [], {}
    for name, effect in effects.items():
        if not answered(effect):
            continue
        factors = effect.moved.axes["alpha"]
        low, high = effect.classes
        ways: tuple[tuple[Way, str], ...] = (("positive", f"{low} → {high}"), ("negative", f"{high} → {low}"))
        for to, way in ways:
            for alpha in factors:
                group = _group(name, effect, to, alpha)
                rows += [[name, label, way, f"{alpha:g}", str(nie)] for label, nie in group.items()]
                if alpha == max(factors):
                    bars[f"{name}, {way}"] = group
    notes = [
        "Activations of held-out examples are moved along the direction of a probe. 0: the answers of the model do not "
        "change. 1: they are those of the other class. A probe that reads well may move nothing: then the model "
        "does not use this direction, or not at this site.",
        "The interval of a probe is a bootstrap over groups of examples. A control has several directions of the same "
        "length: its figure is their mean, from the lowest to the highest.",
    ]
    if not bars:
        warning = "The answers of the model do not tell the classes apart: no share of a difference can be given."
        return Section("Does the model use it?", notes[:1], warning=warning)
    lengths = [
        f"{name}: the move is {float(effect.relative_norm.sel(direction=0).values.mean()):.2f} times as long as the "
        "activation." for name, effect in effects.items()
    ]  # fmt: skip
    heads = ["probe", "direction", "moved", "factor", "effect"]
    figures = {"causal effects": effect_bars(bars, "normalised indirect effect")}
    return Section("Does the model use it?", [*notes, " ".join(lengths)], Table(heads, rows), figures)


def _group(name: str, effect: CausalEffect, to: Way, alpha: float) -> dict[str, Estimate]:
    """The effect of the probe, and of each kind of control ("random 0", "random 1", ... are one kind)."""
    found = {"the probe": effect.nie(name, to, alpha=alpha)}
    kinds: dict[str, list[float]] = {}
    for control in effect.controls:
        kinds.setdefault(control.rstrip("0123456789 "), []).append(effect.nie(control, to, alpha=alpha).value)
    for kind, values in kinds.items():
        label = kind if len(values) == 1 else f"{kind}, {len(values)} times"
        found[label] = Estimate(float(np.mean(values)), min(values), max(values))
    return found
