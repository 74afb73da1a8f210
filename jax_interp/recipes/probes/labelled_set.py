"""A labelled set of a config: a table of your own, or a set that the package makes."""

from __future__ import annotations

import dataclasses
import hashlib
from pathlib import Path

import numpy as np

from jax_interp.core.decisions import same_everywhere
from jax_interp.core.errors import UserError
from jax_interp.data.tokenizer import Tokenizer
from jax_interp.probes import Columns, LabelledTokens, from_table
from jax_interp.recipes.probes.code_fragments import QUESTIONS, code_fragments


@dataclasses.dataclass(frozen=True)
class LabelledSet:
    """Where labelled texts come from."""

    table: Path | None = None
    """A table of your own: CSV, JSON lines or Parquet."""
    made: str = "inside-strings"
    """A set that the package makes, if there is no table: inside-strings or inside-comments (fragments of Python's
    standard library)."""
    columns: Columns = dataclasses.field(default_factory=Columns)
    """What the columns of the table mean."""
    context: int | None = 256
    """Texts are cut after this many tokens, BOS included. None: never."""
    examples: int = 400
    """The most examples. Of a table, a random part. The number of examples of a set that is made."""
    name: str = ""
    """The name of the set in tables. Default: the name of the file, or of the set."""
    only: str | None = None
    """Keep the examples of this class only: the benign ones, for a control set."""
    seed: int = 0
    """The seed of the random part."""

    def __post_init__(self) -> None:
        if self.table is None and self.made not in QUESTIONS:
            raise UserError(f"no set {self.made!r}; there are {', '.join(QUESTIONS)}. Or give a table")
        if self.examples < 8:
            raise UserError(f"examples={self.examples}: a probe needs at least 8")


def read_set(source: LabelledSet, tokenizer: Tokenizer, labelled: bool = True) -> LabelledTokens:
    """The examples of a set, as tokens of a model.

    Args:
      source: where they come from.
      tokenizer: the tokenizer of the model.
      labelled: whether labels are needed. False: a control set, of which labels are read only if `only` asks for a
        class.

    Raises:
      UserError: the table cannot be read, or as in `from_table`. Or a process of the run has
        another set than process 0.
    """
    if source.table is None:
        columns = Columns(text="text", label="label", group="module", positive=QUESTIONS[source.made])
        twice = 1 if source.only is None else 2  # half of the fragments are of the other class
        table = code_fragments(source.made, twice * source.examples, source.seed)
        data = from_table(tokenizer, table, columns, name=source.name or source.made, context=source.context)
    else:
        name = source.name or None
        reads_labels = labelled or source.only is not None
        data = from_table(
            tokenizer, source.table, source.columns, name=name, context=source.context, labelled=reads_labels
        )
    rows = np.arange(len(data))
    if source.only is not None:
        if source.only not in data.classes:
            raise UserError(f"{data.name} has no class {source.only!r}; it has {', '.join(data.classes)}")
        rows = np.flatnonzero(data.labels == data.classes.index(source.only))
    rows = np.random.default_rng(source.seed).permutation(rows)[: source.examples]
    found = data.take(np.sort(rows))
    same_everywhere(f"the labelled set {found.name!r:.200}", fingerprint(found))
    return found


def fingerprint(data: LabelledTokens) -> str:
    """The SHA-256 of the tokens, the mask and the labels of a set."""
    digest = hashlib.sha256(repr(data.classes).encode())
    for array in (data.tokens, data.mask, data.labels):
        digest.update(str(array.shape).encode() + np.ascontiguousarray(array).tobytes())
    return digest.hexdigest()
