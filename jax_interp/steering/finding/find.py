"""`find_directions`: steering directions of all layers, token rules and methods from one pass over labelled texts.

data = pairs_of_questions(questions)
found = find_directions(model, data, [MeanDifference(), PairedPCA()])
found.relative_norms                                        ‖v‖/‖h‖ at each site
vector = found.vector(method="mean difference", sites="blocks.5.resid_post")
steered = edit(model, *vector.edits(2.0))
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from jax.sharding import Mesh

from jax_interp.core.errors import UserError
from jax_interp.probes.labelled_tokens import LabelledTokens
from jax_interp.probes.text_reader import QUIET, OnBatch
from jax_interp.probes.token_rules import LAST, Span, TokenRule, tokens_of
from jax_interp.steering.finding.contrast_pairs import CHOICE
from jax_interp.steering.finding.directions import Directions
from jax_interp.steering.finding.method import DirectionMethod
from jax_interp.steering.finding.methods.mean_difference import MeanDifference
from jax_interp.steering.finding.reading import read_texts
from jax_interp.surgery import Model


def find_directions(
    model: Model,
    data: LabelledTokens,
    methods: DirectionMethod | Sequence[DirectionMethod] = MeanDifference(),  # noqa: B008  it is frozen
    sites: str | Sequence[str] = "blocks.*.resid_post",
    rules: TokenRule | Sequence[TokenRule] | None = None,
    *,
    batch: int = 32,
    on_batch: OnBatch = QUIET,
    place: Mesh | None = None,
) -> Directions:
    """Find directions from the first class of texts to the second one.

    The texts are read once, in batches. Methods that need the class means only keep no activation. Others keep the
    vectors that are read, one for each text, site and rule.

    Args:
      model: any model that names its values, with or without edits, in any precision.
      data: texts of two classes, such as `pairs_of_questions` or `tokenized` makes.
      methods: how the directions are found.
      sites: addresses of values `[batch, pos, ...]` of one width.
      rules: which tokens are read; a rule of several tokens gives their mean. None: the span "choice" if the texts have
        it (questions), or else the last token.
      batch: the number of texts in one forward pass.
      on_batch: called with (texts done, texts) after each batch.
      place: a mesh, as in `probes.gather`.

    Raises:
      UserError: the texts are not of two classes, a method needs pairs and there are none, the two examples of a pair
        are of one class, a rule reads nothing that differs within the pairs, or as in `probes.gather`.
    """
    methods = (methods,) if isinstance(methods, DirectionMethod) else tuple(methods)
    if rules is None:
        rules = Span(CHOICE) if CHOICE in data.spans else LAST
    rules = (rules,) if isinstance(rules, TokenRule) else tuple(rules)
    _check_methods(methods, data)
    _check_classes(data)
    for rule in rules:
        _check_differs(rule, data)
    keep_rows = any(method.needs_rows for method in methods)
    texts = read_texts(
        model, data, sites, rules, keep_rows=keep_rows, batch=batch, on_batch=on_batch, place=place
    )  # fmt: skip
    found = np.stack([method.directions(texts) for method in methods], axis=2).astype(np.float32)
    pairs = 0 if data.pairs is None else len(data.pairs)
    return Directions(found, texts.norms, texts.sites, rules, methods, data.name, data.counts(), pairs)


def _check_methods(methods: Sequence[DirectionMethod], data: LabelledTokens) -> None:
    if not methods or len(set(map(str, methods))) < len(methods):
        raise UserError(f"give methods with different names, not {', '.join(map(str, methods)) or 'none'}")
    for method in methods:
        if method.needs_pairs and (data.pairs is None or not len(data.pairs)):
            raise UserError(
                f"{method} needs contrast pairs, and {data.name} has none: give tokenized(..., pairs=...), or use "
                "pairs_of_texts or pairs_of_questions"
            )


def _check_classes(data: LabelledTokens) -> None:
    if len(data.classes) != 2:
        raise UserError(f"{data.name} has {len(data.classes)} classes: a direction goes from one class to another one")
    if missing := [name for name, count in data.counts().items() if not count]:
        raise UserError(f"{data.name} has no text of the class {missing[0]!r}")
    if data.pairs is not None and (same := data.labels[data.pairs[:, 0]] == data.labels[data.pairs[:, 1]]).any():
        raise UserError(f"both texts of pair {int(np.argmax(same))} of {data.name} are of one class")


def _check_differs(rule: TokenRule, data: LabelledTokens) -> None:
    """Raise UserError if the texts of each pair are equal up to the last token that is read.

    A causal model has the same values there, and their difference would be rounding.
    """
    if data.pairs is None or not len(data.pairs):
        return
    read = tokens_of(rule, data)
    last = read.shape[1] - np.argmax(read[:, ::-1], axis=1)
    until = lambda row: data.tokens[row, : last[row]][data.mask[row, : last[row]]]
    if all(np.array_equal(until(first), until(second)) for first, second in data.pairs.tolist()):
        raise UserError(
            f"the rule {rule} reads no token after the first difference of a pair of {data.name}: a causal model has "
            "the same values there. Read a later token"
        )
