"""The recipe of `steer`: questions in; a steering vector, its measurement and a page out.

    steer(SteerConfig(questions=QuestionSet(table="lm_survival-instinct.jsonl")), "runs/survival")

The run directory then holds

    config.json               the config
    vector.safetensors        the chosen vector, for `jax-interp serve --vectors` and `load_vectors`
    vector.gguf               the same as a control vector, if it acts on residual streams after blocks
    candidates.json           every method, token rule and site, measured on validation questions
    report.json               the measurement on test questions
    steer.html                the page
    summary.txt               the figures as text

The vector is found on the first part of the questions, chosen on the second part, and measured on the third.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Literal

import numpy as np
from jax.sharding import Mesh

from jax_interp.core import config_json
from jax_interp.core.atomic_write import atomic_write
from jax_interp.core.errors import UserError
from jax_interp.core.json_files import write_json
from jax_interp.data.tokenizer import Tokenizer
from jax_interp.models import Decoder, load
from jax_interp.probes import TokenRule
from jax_interp.recipes.steering.choosing import Candidate, Judged, best, judged
from jax_interp.recipes.steering.neutral_text import neutral_windows
from jax_interp.recipes.steering.question_set import QuestionSet, read_question_set
from jax_interp.recipes.steering.steer_page import steer_page
from jax_interp.steering.applying import from_prompt_end, load_vectors, save_vectors
from jax_interp.steering.finding import (
    DirectionMethod,
    MeanDifference,
    PairedPCA,
    find_directions,
    pairs_of_questions,
    prompts_by_factor,
)
from jax_interp.steering.measuring import (
    Batching,
    Continuing,
    SideMeasures,
    SteeringReport,
    coherence,
    measure,
    transfer,
)
from jax_interp.steering.operators import operator_called
from jax_interp.steering.questions import PLACEMENTS, Questions
from jax_interp.steering.vector import SteeringVector
from jax_interp.training.runs import open_run

PAGE, REPORT, CANDIDATES, SUMMARY, VECTOR = (
    "steer.html", "report.json", "candidates.json", "summary.txt", "vector.safetensors",
)  # fmt: skip
CONTROL_VECTOR = "vector.gguf"


@dataclasses.dataclass(frozen=True)
class SteerConfig:
    """Which vectors are found on what, and how they are measured."""

    model: str = "stdlib-small"
    """A model of the package, a Hugging Face directory, or a name on the Hugging Face hub."""
    questions: QuestionSet = dataclasses.field(default_factory=QuestionSet)
    """The questions. Three parts of them find, choose and measure a vector."""
    others: tuple[QuestionSet, ...] = ()
    """Other sets of questions, for the matrix of transfer."""
    vector: Path | None = None
    """A file of a steering vector, safetensors or GGUF: it is measured, and none is found."""
    methods: tuple[DirectionMethod, ...] = (MeanDifference(), PairedPCA())
    """How directions are found."""
    sites: tuple[str, ...] = ("blocks.*.resid_post",)
    """The addresses of the values that are read and steered."""
    contrast: tuple[str, str, str] | None = None
    """A factor of the questions, its level without the behaviour, and its level with it: directions go from prompts of
    one level to those of the other. None: from questions with the other answer to questions with the matching one."""
    rules: tuple[TokenRule, ...] = ()
    """The tokens that are read. Empty: the token in which the two answers differ first, or the last one of a prompt."""
    length: Literal["own", "unit", "relative"] = "relative"
    """The length of a vector at strength 1: that of the method, 1, or the mean norm of the values at its site."""
    operator: str = "add"
    """How the vector changes a value: a name of `steering.operators`."""
    placement: str = "all"
    """The tokens at which it acts on questions: all, after_instruction or answer."""
    strengths: tuple[float, ...] = (-0.3, -0.2, -0.1, 0.0, 0.1, 0.2, 0.3)
    """The strengths that are measured, 0 among them."""
    parts: tuple[float, float, float] = (0.4, 0.2, 0.4)
    """The shares of the questions that find, choose and measure."""
    largest_kl: float = 0.5
    """A vector that changes neutral text by more than this at the largest strength is not chosen, in nats per token."""
    neutral: Path | None = None
    """A UTF-8 text for the side effects. Default: held-out modules of Python's standard library."""
    windows: int = 32
    """The number of windows of neutral text."""
    context: int = 64
    """The number of tokens of a window of neutral text."""
    prompts: int = 4
    """The number of test prompts that are continued, at each strength."""
    new_tokens: int = 24
    """The number of tokens of a continuation."""
    batch: int = 32
    """The number of rows in one forward pass."""
    seed: int = 0
    """The seed of the split, of the windows and of the bootstrap."""

    def __post_init__(self) -> None:
        operator_called(self.operator)
        if self.placement not in PLACEMENTS:
            raise UserError(f"no placement {self.placement!r}: there are {', '.join(PLACEMENTS)}")
        if self.vector is None and not (self.methods and self.sites):
            raise UserError("steer needs at least one method and one site, or the file of a vector")
        if 0.0 not in self.strengths or len(self.strengths) < 3:
            raise UserError("give at least three strengths, and 0 among them")
        if min(self.windows, self.batch, self.new_tokens - 2) < 1 or self.context < 3 or self.prompts < 0:
            raise UserError("windows and batch are at least 1, context and new_tokens at least 3, prompts at least 0")


def steer(
    config: SteerConfig,
    directory: Path | str,
    progress: Callable[[str], None] = lambda line: None,
    *,
    mesh: Mesh | None = None,
) -> SteeringReport:
    """Find a steering vector, measure it, and write the run directory.

    Args:
      config: model, questions, methods, strengths.
      directory: the run directory. A run with the same config is written again.
      progress: called with a line at each stage.
      mesh: the mesh for the model. Its batches are split over `data` and `fsdp`. None: one device.

    Raises:
      UserError: the model, a set of questions, a site or a file cannot be used, or no vector is good enough.
    """
    model, tokenizer = load(config.model, mesh=mesh)
    if tokenizer is None:
        raise UserError(f"{config.model} has no tokenizer, which is needed to turn questions into tokens")
    batching = Batching(config.batch, mesh)
    questions = read_question_set(config.questions, tokenizer)
    progress(questions.describe())
    parts = _split(questions, config)
    neutral = neutral_windows(tokenizer, config.neutral, config.windows, config.context, config.seed)
    with open_run(directory, config) as run:
        vectors = _vectors(config, model, tokenizer, parts["find"], mesh)
        on = Judged(parts["choose"], neutral, config.strengths, config.placement, batching)
        applied = [(*about, vector.using(config.operator)) for *about, vector in vectors]
        candidates = judged(model, applied, on, progress)  # type: ignore[arg-type]
        number = best(candidates, config.largest_kl)
        chosen, vector = candidates[number], vectors[number][-1]
        progress(f"chosen: {chosen.name}")
        steering = vector.using(config.operator)
        report = measure(
            model, parts["measure"], steering, config.strengths, name=chosen.name, placement=config.placement,
            side=SideMeasures(neutral=neutral), batching=batching,
        )  # fmt: skip
        report = dataclasses.replace(
            report,
            coherence=_continued(config, model, tokenizer, vector, parts["measure"], batching),
            transfer=_transferred(config, model, tokenizer, vector, chosen, parts["measure"], mesh, batching),
        )
        _write(run.directory, config, tokenizer, vector, candidates, number, report, parts)
    return report


def _split(questions: Questions, config: SteerConfig) -> dict[str, Questions]:
    return questions.split(dict(zip(("find", "choose", "measure"), config.parts, strict=True)), config.seed)


def _vectors(
    config: SteerConfig, model: Decoder, tokenizer: Tokenizer, questions: Questions, mesh: Mesh | None
) -> list[tuple[str, str, str, float, SteeringVector]]:
    """(method, rule, site, ‖v‖/‖h‖, vector) of each candidate."""
    if config.vector is not None:
        saved = load_vectors(config.vector)
        return [(saved.method or config.vector.name, "", ", ".join(saved.vector.vectors), float("nan"), saved.vector)]
    special = sorted(tokenizer.special_ids)
    if config.contrast is None:
        texts = pairs_of_questions(questions, special_ids=special)
    else:
        texts = prompts_by_factor(questions, *config.contrast, special_ids=special)
    found = find_directions(
        model, texts, config.methods, config.sites, config.rules or None, batch=config.batch, place=mesh
    )
    norms, vectors = np.asarray(found.relative_norms.values), []
    for i, site in enumerate(found.sites):
        for j, rule in enumerate(map(str, found.rules)):
            for k, method in enumerate(map(str, found.methods)):
                vector = found.vector(method=method, rule=rule, sites=site, length=config.length)
                vectors.append((method, rule, site, float(norms[i, j, k]), vector))
    return vectors


def _continued(
    config: SteerConfig, model: Decoder, tokenizer: Tokenizer, vector: SteeringVector, questions: Questions,
    batching: Batching,
):  # fmt: skip
    """Continuations of test prompts. The vector acts on the whole text, or from the last token of the prompt on."""
    if not config.prompts:
        return None
    tokens = () if config.placement == "all" else (from_prompt_end(-1),)
    stop = () if tokenizer.bos_id is None else (tokenizer.bos_id,)
    how = Continuing(config.new_tokens, stop=stop, seed=config.seed)
    steering = vector.using(config.operator, tokens=tokens)
    prompts = list(dict.fromkeys(questions.prompts))[: config.prompts]
    return coherence(model, prompts, steering, config.strengths, how, batching=batching)


def _transferred(
    config: SteerConfig, model: Decoder, tokenizer: Tokenizer, vector: SteeringVector, chosen: Candidate,
    measured: Questions, mesh: Mesh | None, batching: Batching,
):  # fmt: skip
    """The matrix of transfer: on each other set, a vector of the same method, rule and sites is found too."""
    if not config.others:
        return None
    vectors, questions = {measured.name: vector}, {measured.name: measured}
    for source in config.others:
        other = read_question_set(source, tokenizer)
        if other.name in questions:
            raise UserError(f"two sets of questions are called {other.name!r}: give each a name")
        parts = _split(other, config)
        questions[other.name] = parts["measure"]
        if config.vector is None:
            there = _vectors(config, model, tokenizer, parts["find"], mesh)
            vectors[other.name] = next(
                v for *about, v in there if tuple(about[:3]) == (chosen.method, chosen.rule, chosen.site)
            )
    steerings = {name: of.using(config.operator) for name, of in vectors.items()}
    return transfer(
        model, steerings, questions, config.strengths, placement=config.placement, batching=batching, seed=config.seed
    )


def _write(
    directory: Path, config: SteerConfig, tokenizer: Tokenizer, vector: SteeringVector,
    candidates: Sequence[Candidate], number: int, report: SteeringReport, parts: dict[str, Questions],
) -> None:  # fmt: skip
    method = candidates[number].name
    save_vectors(directory / VECTOR, vector, model=config.model, method=method)
    try:
        save_vectors(directory / CONTROL_VECTOR, vector, model=config.model, method=method)
    except UserError:  # the format has residual streams after blocks only
        (directory / CONTROL_VECTOR).unlink(missing_ok=True)
    rows = [config_json.to_json(candidate, nonfinite=True) for candidate in candidates]
    write_json(directory / CANDIDATES, {"chosen": number, "candidates": rows}, nonfinite=True)
    report.save(directory / REPORT)
    atomic_write(directory / SUMMARY, "\n".join(report.lines()) + "\n")
    atomic_write(directory / PAGE, steer_page(config.model, tokenizer, candidates, number, report, parts))
