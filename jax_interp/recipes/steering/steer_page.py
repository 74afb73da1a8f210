"""The page of a steering vector: how it was chosen, what it does to each question, and what else it changes."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from jax_interp.data.tokenizer import Tokenizer
from jax_interp.models.generation.completion import continuation
from jax_interp.recipes.steering.choosing import Candidate
from jax_interp.steering.measuring import Coherence, SteeringReport
from jax_interp.steering.measuring.sections import sections
from jax_interp.steering.questions import Questions
from jax_interp.views.sectioned_page import Section, Table, sectioned_page

FEW = 20
"""With fewer groups of questions, intervals are too wide to be used."""
UNSURE = 0.25
"""The share of anti-steerable questions from which a warning is shown."""
SHOWN = 90
"""The number of characters of a prompt that are shown."""


def steer_page(
    model: str,
    tokenizer: Tokenizer,
    candidates: Sequence[Candidate],
    number: int,
    report: SteeringReport,
    parts: Mapping[str, Questions],
) -> str:
    """The page of a run as one HTML document.

    Args:
      model: the name of the model.
      tokenizer: its tokenizer, for the continuations.
      candidates: what was measured on validation questions.
      number: the number of the chosen one.
      report: the measurement of the chosen one.
      parts: the questions that it was found on, chosen on and measured on.
    """
    own = report.steerability
    facts = {
        "model": model,
        "vector": report.steering,
        "acts at": report.placement,
        "questions": ", ".join(f"{len(of)} to {name}" for name, of in parts.items()),
        "steerability": f"{own.slope.mean} nats for each unit of strength",
        "anti-steerable": str(own.anti_steerable),
    }
    parts_of_page = [
        *sections(report),
        *_continuations(tokenizer, report.coherence, parts["measure"]),
        _candidates(candidates, number),
    ]
    return sectioned_page("steering", f"{own.questions} in {model}", facts, warnings(report), parts_of_page)


def warnings(report: SteeringReport) -> list[str]:
    """What must be known before the figures are read."""
    own, found = report.steerability, []
    if own.slope.groups < FEW:
        found.append(f"The test part has {own.slope.groups} independent questions: intervals are wide.")
    if not own.slope.mean.low > 0:
        found.append("The interval of the mean slope reaches 0 or less: the vector does not steer these questions.")
    if own.anti_steerable.value >= UNSURE:
        found.append(
            f"{own.anti_steerable.value:.0%} of the questions move against the vector: the mean hides two behaviours."
        )
    for name, factor in own.factors.items():
        if factor.eta_squared.low > factor.by_chance:
            found.append(f"{name} explains {factor.eta_squared.value:.0%} of the variance of the slopes.")
    return found


def _continuations(tokenizer: Tokenizer, found: Coherence | None, questions: Questions) -> list[Section]:
    """The continuations of each prompt at each strength."""
    if found is None:
        return []
    prompts, rows, strong = list(dict.fromkeys(questions.prompts)), [], set()
    for prompt, steered, own in zip(prompts, found.tokens, found.unsteered_tokens, strict=False):
        strong.add(len(rows))
        rows.append(["... " + _on_one_line(tokenizer.decode(list(prompt), skip_special=True))[-SHOWN:]])
        rows.append([f"unsteered: {_on_one_line(continuation(tokenizer, prompt, own))[:SHOWN]}"])
        for strength, ids in zip(found.strengths, steered, strict=True):
            rows.append([f"{strength:g}: {_on_one_line(continuation(tokenizer, prompt, ids))[:SHOWN]}"])
    notes = (
        f"The last {SHOWN} characters of each prompt, in bold, and the first {SHOWN} of its continuation at each "
        "strength. The likeliest token is taken at each step. ⏎ is the end of a line.",
    )
    return [Section("Continuations of test prompts", notes, Table(["text"], rows, frozenset(strong)))]


def _on_one_line(text: str) -> str:
    """The text with a mark in place of each end of a line and its indentation."""
    return "⏎ ".join(line.strip() for line in text.split("\n"))


def _candidates(candidates: Sequence[Candidate], number: int) -> Section:
    rows = [
        [
            of.name,
            str(of.slope.mean),
            f"{of.slope.sd:.3f}",
            str(of.anti_steerable),
            str(of.kl.mean),
            f"{of.relative_norm:.3f}",
        ]
        for of in candidates
    ]
    notes = (
        "Every method, token rule and site on validation questions. The chosen one, in bold, has the largest mean "
        "slope of those whose KL at the largest strength is small enough.",
    )
    columns = ["vector", "slope", "sd", "anti-steerable", "KL", "‖v‖/‖h‖"]
    return Section("Candidates", notes, Table(columns, rows, frozenset({number})))
