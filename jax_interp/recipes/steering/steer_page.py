"""The page of a steering vector: how it was chosen, what it does to each question, and what else it changes."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from jax_interp.data.tokenizer import Tokenizer
from jax_interp.models.generation.completion import continuation
from jax_interp.recipes.steering.choosing import Candidate
from jax_interp.steering.measuring import Coherence, SteeringReport, Transfer
from jax_interp.steering.questions import Questions
from jax_interp.views.sectioned_page import Section, Table, sectioned_page

FEW = 20
"""With fewer groups of questions, intervals are too wide to be used."""
UNSURE = 0.25
"""The share of anti-steerable questions from which a warning is shown."""
RARE = 0.05
"""The probability of both answers together below which a warning is shown."""
SHOWN = 80
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
    sections = [
        Section("Dose and response", DOSE, Table(*report.dose_response())),
        _factors(report),
        *_continuations(tokenizer, report.coherence, parts["measure"]),
        *_transfer(report.transfer),
        _candidates(candidates, number),
    ]
    return sectioned_page("steering", f"{own.questions} in {model}", facts, warnings(report), sections)


DOSE = (
    "Propensity is log P(matching answer) - log P(other answer), in nats, of test questions. The vector was neither "
    "found nor chosen on them. Intervals are 95 % bootstrap intervals over groups of questions; sd is the standard "
    "deviation of single questions. KL is that of the next token on neutral text.",
)


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
    rare = min(of.mean.value for of in own.p_answers)
    if rare < RARE:
        found.append(f"At some strength the model gives one of the two answers with probability {rare:.3f} only.")
    return found


def _factors(report: SteeringReport) -> Section:
    rows = []
    for name, factor in report.steerability.factors.items():
        rows.append([name, str(factor.eta_squared), f"{factor.by_chance:.3f}", "", ""])
        for level, of in factor.levels.items():
            rows.append([f"{name} = {level}", "", "", str(of.slope), str(of.anti_steerable)])
    columns = ["factor", "η²", "by chance", "slope", "anti-steerable"]
    notes = ("η² is the share of the variance of slopes between the levels of a factor.",)
    return Section("Nuisance factors", notes, Table(columns, rows) if rows else None)


def _continuations(tokenizer: Tokenizer, found: Coherence | None, questions: Questions) -> list[Section]:
    """The continuations of each prompt at each strength."""
    if found is None:
        return []
    prompts, rows = list(dict.fromkeys(questions.prompts)), []
    for prompt, steered, own in zip(prompts, found.tokens, found.unsteered_tokens, strict=False):
        rows.append([tokenizer.decode(list(prompt), skip_special=True)[-SHOWN:], "", ""])
        rows.append(["", "unsteered", continuation(tokenizer, prompt, own)])
        for strength, ids in zip(found.strengths, steered, strict=True):
            rows.append(["", f"{strength:g}", continuation(tokenizer, prompt, ids)])
    notes = ("The likeliest token is taken at each step.",)
    return [Section("Continuations of test prompts", notes, Table(["prompt", "strength", "text"], rows))]


def _transfer(found: Transfer | None) -> list[Section]:
    if found is None:
        return []
    rows = [
        [row, column, str(cell.slope), str(cell.anti_steerable), str(cell.relative)]
        for row, columns in found.cells.items()
        for column, cell in columns.items()
    ]
    columns = ["found on", "measured on", "slope", "anti-steerable", "relative to the vector found there"]
    return [Section("Transfer", table=Table(columns, rows))]


def _candidates(candidates: Sequence[Candidate], number: int) -> Section:
    rows = [
        [of.name, str(of.slope), str(of.anti_steerable), str(of.kl.mean), f"{of.relative_norm:.3f}"]
        for of in candidates
    ]
    notes = (
        "Every method, token rule and site on validation questions. The chosen one, in bold, has the largest mean "
        "slope of those whose KL at strength 1 is small enough.",
    )
    columns = ["vector", "slope", "anti-steerable", "KL at strength 1", "‖v‖/‖h‖"]
    return Section("Candidates", notes, Table(columns, rows, frozenset({number})))
