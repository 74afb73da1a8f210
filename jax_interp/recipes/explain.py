"""The recipe of `explain`: which components cause one surprising prediction, found by resampling.

    found = explain(ExplainConfig(prompt="def f(self, data):\\n    return data"), "runs/why")

**Other prompts of its kind** are the prompts of a file, or places in a text whose last tokens are the same as those of
the prompt, up to the prediction, with as many tokens before them. As many tokens are compared as still leave enough
places. Values are exchanged between positions at the same distance from the end. If there are too few, nothing is
explained: a resample from unrelated text would undo any prediction.
"""

from __future__ import annotations

import dataclasses
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh
from jaxtyping import Float, Int

from jax_interp.circuits.cause import Cause, components_of, find_cause
from jax_interp.circuits.contrast import Contrast, make_contrast
from jax_interp.circuits.metrics import LogitDifference
from jax_interp.core import config_json
from jax_interp.core.atomic_write import atomic_write, make_directory
from jax_interp.core.errors import UserError
from jax_interp.core.json_files import read_bytes, write_json
from jax_interp.core.processes import on_host
from jax_interp.data.text import text_for
from jax_interp.data.tokenizer import Tokenizer
from jax_interp.models import load
from jax_interp.training import on_mesh
from jax_interp.views.explain_page import ExplainPage, explain_page
from jax_interp.views.unit_map import unit_map

PAGE = "explain.html"
LEAST = 8
"""The least number of other prompts: half of them for the search, half for the test."""
MOST_SHARED = 8
"""The largest number of last tokens that places in a text must share with the prompt."""


@dataclasses.dataclass(frozen=True)
class ExplainConfig:
    """Which prediction is explained, and against which other prompts."""

    prompt: str
    """The text."""
    model: str = "stdlib-small"
    """A model of the package, a Hugging Face directory, or a name on the Hugging Face hub."""
    position: int | None = None
    """The position of the token after which the prediction is made. BOS counts; negative: from the end. None: the one
    whose next token surprises the model most."""
    token: str | None = None
    """The predicted token. None: the most likely one."""
    others: Path | None = None
    """A UTF-8 file with one other prompt in each line. A line ends where the prediction is made. None: places in
    `text`."""
    text: str = "stdlib"
    """The text whose held-out part is searched for other prompts: "stdlib", a UTF-8 file, or a directory."""
    count: int = 32
    """How many other prompts are used, at most."""
    rows: int = 64
    """How many prompts run at once."""
    seed: int = 0
    """The seed of the choice of other prompts and of random sets."""

    def __post_init__(self) -> None:
        if self.count < LEAST or self.rows < 1:
            raise UserError(f"count={self.count}, rows={self.rows}: at least {LEAST} other prompts, and 1 row")


@dataclasses.dataclass(frozen=True, eq=False)
class Explained:
    """An explained prediction.

    Attributes:
      tokens: the tokens of the whole prompt.
      surprise: -log p of each token, in nats; NaN for the first.
      position: where the prediction is made.
      predicted: the id of the predicted token.
      instead: the id of the token it is compared with: the next one of the prompt, or the most likely other one.
      shared: how many last tokens all prompts share.
      others: the other prompts, as texts of their last tokens; those of the test.
      cause: what was found.
    """

    tokens: Int[np.ndarray, " pos"]
    surprise: Float[np.ndarray, " pos"]
    position: int
    predicted: int
    instead: int
    shared: int
    others: tuple[str, ...]
    cause: Cause


def explain(config: ExplainConfig, directory: Path | str | None = None, *, mesh: Mesh | None = None) -> Explained:
    """Explain one prediction, and write the page.

    Args:
      config: the prompt and where other prompts come from.
      directory: where the page and the figures go. None: nothing is written.
      mesh: the mesh for the model. Sets of components are split over its row axes. None: one device.

    Raises:
      UserError: the model has no tokenizer, the prompt is too short, the token is not predicted there, or there are too
        few other prompts of its kind.
    """
    model, tokenizer = load(config.model, mesh=mesh)
    if tokenizer is None:
        raise UserError(f"{config.model} has no tokenizer, which is needed to turn the prompt into tokens")
    tokens = np.asarray(tokenizer.encode(config.prompt, bos=tokenizer.bos_id is not None), np.int32)
    if len(tokens) < 4:
        raise UserError(f"the prompt has {len(tokens)} tokens: give a longer one")
    logits = np.asarray(on_host(jax.jit(lambda model, tokens: model(tokens))(model, tokens[None]))[0], np.float64)
    position, surprise = _position(config, tokens, logits)
    predicted, instead = _compared(config, tokenizer, tokens, logits, position)
    prompt = tokens[: position + 1]
    others, shared = other_prompts(config, tokenizer, prompt)
    half = len(others) // 2
    contrasts = [_contrast(prompt, rows, predicted, instead) for rows in (others[:half], others[half : 2 * half])]
    n = len(prompt)
    classes = {"last token": [n - 1], "shared tokens": range(n - shared, n - 1), "earlier tokens": range(n - shared)}
    with on_mesh(mesh):
        components = components_of(model, contrasts[0], classes)
        cause = find_cause(model, contrasts[0], components, contrasts[1], seed=config.seed, rows=config.rows)
    tails = tuple("".join(tokenizer.texts(row[-24:].tolist())) for row in others[half : 2 * half])
    found = Explained(tokens, surprise, position, predicted, instead, shared, tails, cause)
    if directory is not None:
        _write(Path(directory), config, found, tokenizer, logits)
    return found


def other_prompts(
    config: ExplainConfig, tokenizer: Tokenizer, prompt: Int[np.ndarray, " pos"]
) -> tuple[Int[np.ndarray, "prompt pos"], int]:
    """(other prompts of the same kind, an even number; how many last tokens they share with the prompt).

    Each has as many tokens as the prompt: of a longer one, the last. If the tokenizer has a BOS, all begin with it.
    """
    n, bos = len(prompt), tokenizer.bos_id
    body = n - (bos is not None and prompt[0] == bos)
    start = [] if body == n else [bos]
    if config.others is not None:
        lines = read_bytes(config.others).decode("utf-8").splitlines()
        rows = [ids[-body:] for ids in tokenizer.encode_batch([line for line in lines if line], bos=False)]
        rows = [ids for ids in rows if len(ids) == body and ids != prompt[-body:].tolist()]
        what, shared = f"lines of {config.others} with {body} tokens or more", 1
    else:
        text = text_for(config.text, tokenizer)
        rows, shared = _places(text.validation, sorted(text.special), prompt[-body:], config.count)
        what = (
            f"places in the held-out part of {config.text} that end with {tokenizer.strings(prompt[-shared:].tolist())}"
        )
    if len(rows) < LEAST:
        raise UserError(
            f"there are {len(rows)} {what}, and an explanation needs {LEAST} other prompts of the same kind at least: "
            "give a file of prompts (--others), another text (--text), or a shorter prompt"
        )
    order = np.random.default_rng(config.seed).permutation(len(rows))[: config.count // 2 * 2]
    order = order[: len(order) // 2 * 2]
    chosen = np.asarray([[*start, *rows[i]] for i in order], np.int32)
    if config.others is not None:
        same = (chosen[:, ::-1] == prompt[::-1][None]).all(0)
        shared = int(np.argmin(same))  # the prompt itself is left out, so some token differs
    return chosen, shared


def _places(
    text: Int[np.ndarray, " token"], special: list[int], body: Int[np.ndarray, " pos"], wanted: int
) -> tuple[list[list[int]], int]:
    """Windows of the text that end with the last tokens of `body`, for the most last tokens that leave `wanted` places,
    or else for the last token alone. No window contains a special token or is the prompt itself."""
    n, found = len(body), []
    for shared in range(min(MOST_SHARED, n - 1), 0, -1):
        windows = np.lib.stride_tricks.sliding_window_view(text, n)
        ends = np.flatnonzero((windows[:, n - shared :] == body[n - shared :][None]).all(1))
        found = [windows[i] for i in ends if not np.isin(windows[i], special).any() and (windows[i] != body).any()]
        if len(found) >= wanted or shared == 1:
            return [row.tolist() for row in found], shared
    return [], 1


def _position(
    config: ExplainConfig, tokens: Int[np.ndarray, " pos"], logits: Float[np.ndarray, "pos vocab"]
) -> tuple[int, Float[np.ndarray, " pos"]]:
    """(where the prediction is made, the surprise of each token)."""
    log_p = (
        logits - np.log(np.exp(logits - logits.max(-1, keepdims=True)).sum(-1, keepdims=True)) - logits.max(-1)[:, None]
    )
    surprise = np.concatenate([[np.nan], -log_p[np.arange(len(tokens) - 1), tokens[1:]]])
    n = len(tokens)
    if config.position is None:
        return 2 + int(np.argmax(surprise[3:])), surprise
    position = config.position + n if config.position < 0 else config.position
    if not 2 <= position < n:
        raise UserError(f"position={config.position}: the prompt has {n} tokens, BOS included; give 2 to {n - 1}")
    return position, surprise


def _compared(
    config: ExplainConfig,
    tokenizer: Tokenizer,
    tokens: Int[np.ndarray, " pos"],
    logits: Float[np.ndarray, "pos vocab"],
    position: int,
) -> tuple[int, int]:
    """(the predicted token, the token that it is compared with)."""
    here = logits[position]
    predicted = int(np.argmax(here)) if config.token is None else tokenizer.id_of(config.token)
    actual = int(tokens[position + 1]) if position + 1 < len(tokens) else predicted
    if actual == predicted:
        actual = int(np.argmax(np.where(np.arange(len(here)) == predicted, -np.inf, here)))
    if not here[predicted] > here[actual]:
        names = tokenizer.strings([predicted, actual])
        raise UserError(
            f"the model does not predict {names[0]!r} at position {position}: {names[1]!r} is more likely. Give "
            "another --token or --position"
        )
    return predicted, actual


def _contrast(
    prompt: Int[np.ndarray, " pos"], others: Int[np.ndarray, "row pos"], predicted: int, instead: int
) -> Contrast:
    metric = LogitDifference(jnp.full(len(others), predicted), jnp.full(len(others), instead))
    return make_contrast(np.repeat(prompt[None], len(others), 0), others, metric)


def summary(found: Explained, tokenizer: Tokenizer) -> list[str]:
    """What was found, in sentences."""
    cause, names = found.cause, tokenizer.strings([found.predicted, found.instead])
    after = "".join(tokenizer.strings(found.tokens[max(0, found.position - 5) : found.position + 1].tolist()))
    lines = [
        f"after …{after} the model predicts {names[0]!r} and not {names[1]!r}: logit difference {cause.base:.2f}",
        f"{2 * len(found.others)} other prompts share the last tokens ({found.shared}); half for the search, half for "
        f"all figures. Their own logit difference is {cause.others.mean():.2f} ± {cause.others.std(ddof=1):.2f} "
        "(standard deviation)",
    ]
    if not cause.chosen:
        everything = f"with all components resampled, the difference is {cause.everything.mean():.2f}"
        same = cause.others.mean() > 0
        why = "other prompts of its kind predict the same" if same else "the cause is not in heads and MLPs"
        return [*lines, f"nothing undoes it: {everything}; {why}"]
    chosen = ", ".join(cause.components.names[i] for i in cause.chosen)
    random = cause.random.mean(1)
    lines += [
        f"the smallest set found that undoes it has {len(cause.chosen)} of {len(cause.components.names)} components: "
        f"{chosen}",
        f"with the set resampled the difference is {cause.chosen_metric.mean():.2f} ± "
        f"{cause.chosen_metric.std(ddof=1):.2f}; the prediction is undone in {(cause.chosen_metric < 0).mean():.0%} of "
        "the prompts of the test",
        "there is no other set with as many components of each kind"
        if not len(random)
        else f"random sets with as many components of each kind: {random.mean():.2f}, from {random.min():.2f} to "
        f"{random.max():.2f} ({len(random)} sets); all components: {cause.everything.mean():.2f}",
    ]
    if cause.others.mean() > 0:
        lines.append(
            "OTHER PROMPTS OF ITS KIND PREDICT THE SAME: the set is needed for the prediction, and does not tell this "
            "prompt from the others"
        )
    if cause.chosen_metric.mean() > 0:
        lines.append("ON NEW PROMPTS THE SET DOES NOT UNDO THE PREDICTION on average: do not take it for the cause")
    elif len(random) and random.min() <= cause.chosen_metric.mean():
        lines.append("SOME RANDOM SET DOES AS MUCH: do not take this set for the cause")
    return lines


def _write(
    directory: Path,
    config: ExplainConfig,
    found: Explained,
    tokenizer: Tokenizer,
    logits: Float[np.ndarray, "pos vocab"],
) -> None:
    make_directory(directory)
    cause, names = found.cause, found.cause.components.names
    ranked = [{"component": names[i], "drop": mean, "spread": sd} for i, mean, sd in cause.ranked()]
    write_json(directory / "explain.json", {
        "config": config_json.to_json(config), "position": found.position,
        "predicted": tokenizer.texts([found.predicted])[0], "instead": tokenizer.texts([found.instead])[0],
        "logit_difference": cause.base, "chosen": [names[i] for i in cause.chosen],
        "chosen_metric": cause.chosen_metric.tolist(), "everything": cause.everything.tolist(),
        "random": cause.random.tolist(), "others": cause.others.tolist(), "alone": ranked,
    })  # fmt: skip
    here = logits[found.position]
    p = np.exp(here - here.max()) / np.exp(here - here.max()).sum()
    top = np.argsort(-p)[:6]
    table, rows, columns = _grid(cause)
    page = ExplainPage(
        title=f"Why {tokenizer.strings([found.predicted])[0]} here?",
        model=config.model,
        tokens=tokenizer.strings(found.tokens.tolist()),
        surprise=found.surprise.tolist(),
        position=found.position,
        top=[(tokenizer.strings([int(i)])[0], float(p[i])) for i in top],
        summary=summary(found, tokenizer),
        chosen=[names[i] for i in cause.chosen],
        ranked=[(names[i], mean, sd) for i, mean, sd in cause.ranked()[:20]],
        grid=unit_map(table, rows, columns, "fall of the logit difference", "resampled alone"),
        resamples=list(
            zip(found.others, cause.others.tolist(), cause.chosen_metric.tolist(), cause.everything.tolist())
        ),
    )
    atomic_write(directory / PAGE, explain_page(page))


def _grid(cause: Cause) -> tuple[Float[np.ndarray, "row column"], list[str], list[str]]:
    """The effect of each component alone: a row for each layer and class of positions, a column for each part."""
    drops = (cause.base - cause.alone).mean(1)
    places = [name.split(", ") for name in cause.components.names]
    rows = list(dict.fromkeys((part.split(" ")[0], where) for part, where in places))
    columns = list(dict.fromkeys(part.split(" ", 1)[1] for part, _ in places))
    table = np.full((len(rows), len(columns)), np.nan)
    for (part, where), drop in zip(places, drops):
        layer, column = part.split(" ", 1)
        table[rows.index((layer, where)), columns.index(column)] = drop
    return table, [f"{layer} {where}" for layer, where in rows], columns
