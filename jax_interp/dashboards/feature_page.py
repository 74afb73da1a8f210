"""The page of `FeatureData`: one HTML file with a searchable list, a view of each feature, and a view of prompts.

    data = collect_features(model, "blocks.2.resid_post", sae, batches).with_strings(strings)
    prompts = prompt_features(Latents(sae, None, "blocks.2.resid_post"), model, tokens)
    write_feature_page("features.html", data, prompts=prompts)

The page is a file of its own: it fetches nothing, and opens by a double click.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Int

from jax_interp.core.atomic_write import atomic_write
from jax_interp.core.errors import UserError
from jax_interp.dashboards.collector import ScoreFunction, Scores
from jax_interp.dashboards.feature_data import Examples, FeatureData
from jax_interp.views import feature_page as views

TITLES = {"top": "Largest {score}s", "lowest": "Smallest {score}s", "uniform": "Uniform sample of positions"}
TOKEN_EFFECT, LOSS_EFFECT = "effect of the token on the {unit}", "effect on the loss"


def write_feature_page(path: Path | str, data: FeatureData, **options: Any) -> Path:
    """Write the page of `data` to one HTML file.

    Args:
      path: the file. It is replaced if it exists.
      data: the features.
      **options: the options of `feature_page`.

    Returns:
      The path.

    Raises:
      UserError: there is no feature, or the path does not end in .html.
    """
    path = Path(path)
    if path.suffix != ".html":
        raise UserError(f"{str(path)!r}: a page of features is saved as .html")
    return atomic_write(path, views.render(feature_page(data, **options)))


def feature_page(
    data: FeatureData,
    *,
    prompts: Sequence[views.Prompt] = (),
    strings: Mapping[int, str] | Callable[[Sequence[int]], Sequence[str]] | None = None,
    notes: Mapping[int, str] | None = None,
    names: Mapping[int, str] | None = None,
    score: str = "activation",
    facts: Mapping[str, str] | None = None,
) -> views.FeaturePage:
    """The content of the page of some features.

    Args:
      data: the features.
      prompts: texts with the features that are active in them, as `prompt_features` returns them.
      strings: the strings of token ids, also of the prompts: a mapping, or a function such as `tokenizer.strings`.
        None: `data.strings`. A token without a string is shown as its id.
      notes: a note of a feature, such as an explanation, by its index.
      names: the name of a feature, by its index, where the index says too little.
      score: what a score is, in the singular.
      facts: named facts besides those of `data`.

    Returns:
      The content, for `jax_interp.views.feature_page.render`.
    """
    known = data.strings if strings is None else strings
    text_of = known if callable(known) else lambda ids: [known.get(i, f"token {i}") for i in ids]
    ranked = (("Promoted tokens", data.promoted), ("Suppressed tokens", data.suppressed))
    related = (("Similar decoder directions", data.neighbours), ("Active together", data.co_firing))
    described = {"model": data.model, "address": data.address, "text": data.text}
    seen = {"tokens read": f"{data.tokens_seen:,}", f"{data.name}s": f"{len(data.units):,}"}
    return views.FeaturePage(
        data.title,
        data.units,
        text_of,
        data.density,
        figures=_figures(data, score),
        examples=[_examples(group, data.name, score) for group in data.examples],
        tokens=[views.RankedTokens(name, part.tokens, part.effects) for name, part in ranked if part is not None],
        related=[
            views.Related(name, part.units, part.values, part.measure) for name, part in related if part is not None
        ],
        histograms=_histograms(data, score),
        prompts=prompts,
        notes=notes or {},
        names=names or {},
        description=f"{len(data.units):,} {data.name}s, read on {data.tokens_seen:,} tokens of {data.text}.",
        facts=described | seen | dict(facts or {}),
        unit=data.name,
        score=score,
    )


def prompt_features(
    scores: ScoreFunction, model: Any, prompts: Sequence[Int[np.ndarray, " pos"]], *, threshold: float = 0.0
) -> list[views.Prompt]:
    """Compute which features are active at each token of some prompts.

    Prompts of one length run together. No prompt is padded, so the result is right for any model.

    Args:
      scores: the score function, such as `Latents(dictionary, None, address)`.
      model: the first argument of `scores`.
      prompts: the token ids of each prompt.
      threshold: a feature is active if the magnitude of its score is above this.

    Raises:
      UserError: a prompt is empty, or a score is not finite.
    """
    lengths = [len(tokens) for tokens in prompts]
    if not all(lengths):
        raise UserError("a prompt has no tokens: leave it out")
    found: dict[int, views.Prompt] = {}
    run = jax.jit(_scores)
    function = jax.tree_util.Partial(scores) if jax.tree_util.all_leaves([scores]) else scores
    for length in sorted(set(lengths)):
        places = [i for i, one in enumerate(lengths) if one == length]
        tokens = np.stack([np.asarray(prompts[i], np.int32) for i in places])
        values = np.asarray(run(function, model, jnp.asarray(tokens))).reshape(*tokens.shape, -1)
        if not np.isfinite(values).all():
            raise UserError("a score in a prompt is not finite: check the model and the dictionary")
        for place, ids, rows in zip(places, tokens, values):
            active = [np.flatnonzero(np.abs(row) > threshold) for row in rows]
            found[place] = views.Prompt(ids, active, [row[units] for row, units in zip(rows, active)])
    return [found[place] for place in range(len(prompts))]


def _scores(scores: Any, model: Any, tokens: Int[Array, "seq pos"]) -> Array:
    given = scores(model, tokens)
    return (given.values if isinstance(given, Scores) else given).astype(jnp.float32)


def _figures(data: FeatureData, score: str) -> list[views.Figure]:
    never = data.firings == 0
    of_active = lambda values: np.where(never, np.nan, values)
    figures = [views.Figure(f"largest {score}", of_active(data.max_activation), f"largest {score}")]
    if (data.min_activation < 0).any():
        figures.append(views.Figure(f"smallest {score}", of_active(data.min_activation), f"smallest {score}"))
    mean = of_active(data.mean_activation_when_on)
    figures.append(views.Figure(f"mean {score}", mean, f"mean {score} where it is active"))
    if data.loss_effect is not None:
        says = "change of the next token's loss when it is ablated, in nats"
        figures.append(views.Figure("loss effect", data.loss_effect, says))
    return figures


def _examples(group: Examples, unit: str, score: str) -> views.Examples:
    title = TITLES[group.label].format(score=score) if group.label in TITLES else group.label.capitalize()
    effects = {TOKEN_EFFECT.format(unit=unit): group.token_effects, LOSS_EFFECT: group.loss_effects}
    measured = {name: values for name, values in effects.items() if values is not None}
    windows = group.windows
    return views.Examples(title, windows.tokens, windows.scores, windows.before, measured)


def _histograms(data: FeatureData, score: str) -> list[views.Histogram]:
    parts = (
        (f"{score.capitalize()}s where it is active", data.activation_histogram, True),
        ("Changes of all logits", data.logit_histogram, True),
    )
    return [views.Histogram(name, h.counts, h.edges, logarithmic=log) for name, h, log in parts if h is not None]
