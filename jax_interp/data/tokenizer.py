"""Byte-level BPE for source code: training, loading, and one explicit rule for the document-start token.

The pre-tokenizer decides what may become a token, with interpretability in mind: a newline with the indentation that
follows it is one piece, brackets always stand alone (so that closing one is one prediction), identifiers are cut at
`_`, at changes of case and at digits (so that the parts of `get_default_encoding` are the same tokens elsewhere).
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING

from jax_interp.core.errors import UserError

if TYPE_CHECKING:
    import tokenizers

BOS = "<|endoftext|>"
"""The one special token: it starts every document (and so ends the one before). Its id is 0."""

PIECES = "|".join(
    (
        r"\s*\n\s*",  # line ends, blank lines and the next line's indentation together
        r" ?__\p{Ll}+__(?![\p{L}_])",  # __init__ and its kind stay whole
        r" ?_*(?:\p{Lu}+(?!\p{Ll})|\p{Lu}?[\p{Ll}\p{M}]+|[\p{Lo}\p{Lm}\p{Lt}]+)",  # HTTP|Server, _encoding, __init
        r" ?_+",
        r" ?\p{N}{1,3}",
        r" ?[\(\)\[\]\{\}]",
        r" ?[^\s\p{L}\p{N}_\(\)\[\]\{\}]+",  # operators, quotes, rulers
        r"\s+(?!\S)|\s+",
    )
)
"""What BPE may merge within; every character of any text belongs to exactly one piece."""


@dataclass(frozen=True)
class Tokenizer:
    """A `tokenizers.Tokenizer` with BOS made explicit.

    Whatever the file's post-processor would add is never added: `encode(text, bos=True)` puts the BOS id first and
    `bos=False` does not, for every tokenizer; and special tokens spelled out in the text are encoded as plain text
    only if the tokenizer was trained without them (Hugging Face's files match them, as theirs do).
    """

    backend: tokenizers.Tokenizer
    bos_id: int | None
    special_ids: frozenset[int] = field(default_factory=frozenset)

    @property
    def vocab_size(self) -> int:
        """How many ids there are, special ones included."""
        return self.backend.get_vocab_size()

    def encode(self, text: str, *, bos: bool) -> list[int]:
        """The ids of `text`, after the BOS id when `bos`. Raises `UserError` when `bos` and the tokenizer has none."""
        return self._with_bos(bos) + self.backend.encode(text, add_special_tokens=False).ids

    @cached_property
    def exact(self) -> tokenizers.Tokenizer:
        """A copy of the backend whose offsets are exact: post-processors may trim spaces off them."""
        from tokenizers import Tokenizer as Backend

        copy = Backend.from_str(self.backend.to_str())
        copy.post_processor = None  # type: ignore[assignment]
        return copy

    def encode_batch(self, texts: Sequence[str], *, bos: bool) -> list[list[int]]:
        """`encode` of each text, on all cores."""
        start = self._with_bos(bos)
        return [start + e.ids for e in self.backend.encode_batch(list(texts), add_special_tokens=False)]

    def decode(self, ids: Iterable[int], *, skip_special: bool = False) -> str:
        """The text of `ids`; bytes that are no complete character become U+FFFD."""
        return self.backend.decode([int(i) for i in ids], skip_special_tokens=skip_special)

    def strings(self, ids: Iterable[int]) -> list[str]:
        """One string per token for display: newlines as `⏎`, tabs as `⇥`, leading and trailing spaces as `·`."""
        return [self._display(int(i)) for i in ids]

    def id_of(self, text: str) -> int:
        """The id of `text` when it is exactly one token; `UserError` with its pieces when it is not."""
        ids = self.encode(text, bos=False)
        if len(ids) != 1:
            raise UserError(
                f"{text!r} is not one token here but {self.strings(ids)}; name one of those, "
                "and mind the leading space: ' self' and 'self' are different tokens"
            )
        return ids[0]

    def save(self, path: str | Path) -> None:
        """Write `tokenizer.json` (or any other file name), creating its directory."""
        Path(path).parent.mkdir(parents=True, exist_ok=True)
        self.backend.save(str(path))

    def _with_bos(self, bos: bool) -> list[int]:
        if not bos:
            return []
        if self.bos_id is None:
            raise UserError("this tokenizer has no document-start token: pass bos=False, or bos_token= when loading it")
        return [self.bos_id]

    def _display(self, token: int) -> str:
        if token in self.special_ids:
            return self.backend.id_to_token(token) or f"<{token}>"
        text = self.backend.decode([token], skip_special_tokens=False)
        if not text or "\ufffd" in text:
            return self.backend.id_to_token(token) or f"<{token}>"
        body = text.strip(" ")
        head, tail = (len(text) - len(text.lstrip(" ")), len(text) - len(text.rstrip(" "))) if body else (len(text), 0)
        return "·" * head + _visible(body) + "·" * tail


def _visible(text: str) -> str:
    lines = text.replace("\t", "⇥").split("\n")
    return "⏎".join([lines[0]] + [line.replace(" ", "·") if not line.strip() else line for line in lines[1:]])


def train_bpe(texts: Iterable[str] | Iterator[str], vocab_size: int) -> Tokenizer:
    """Train a byte-level BPE on `texts`; seconds for ten megabytes. Deterministic: same texts and size, same file.

    `vocab_size` includes BOS and the 256 bytes, so at least 257; every text can be encoded and decodes to itself.
    """
    if vocab_size < 257:
        raise UserError(f"vocab_size={vocab_size} is too small: 256 byte tokens and {BOS} need at least 257")
    from tokenizers import Regex, decoders, models, pre_tokenizers, trainers
    from tokenizers import Tokenizer as Backend

    backend = Backend(models.BPE())
    backend.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(PIECES), behavior="isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    backend.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size,
        special_tokens=[BOS],
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        show_progress=False,
    )
    backend.train_from_iterator(texts, trainer=trainer)
    return _wrap(backend, BOS)


def load_tokenizer(path: str | Path, *, bos_token: str | None = None, bos_id: int | None = None) -> Tokenizer:
    """Read a `tokenizer.json`, or the one in a directory.

    The BOS is `bos_token`; or the token `bos_id`, which a model's config may name, where it is a special token here; or
    the first of `<|endoftext|>`, `<|begin_of_text|>`, `<bos>`, `<s>` that is a special token. Raises `UserError` for a
    missing or unreadable file and for a `bos_token` that is not in the vocabulary.
    """
    from tokenizers import Tokenizer as Backend

    path = Path(path)
    file = path / "tokenizer.json" if path.is_dir() else path
    if not file.is_file():
        near = sorted(p.name for p in file.parent.glob("*"))[:10] if file.parent.is_dir() else "no such directory"
        raise UserError(f"no tokenizer at {file} (beside it: {near}); give a tokenizer.json or a directory with one")
    try:
        backend = Backend.from_file(str(file))
    except Exception as error:  # the Rust side raises bare Exception
        raise UserError(f"{file} is not a tokenizer.json of the `tokenizers` library: {error}") from error
    if bos_token is not None and backend.token_to_id(bos_token) is None:
        raise UserError(f"bos_token={bos_token!r} is not in the vocabulary of {file}")
    if bos_token is None:
        # Special ones only: a vocabulary may have <s> as a word of HTML, and an id for another use.
        special = {i: token.content for i, token in backend.get_added_tokens_decoder().items() if token.special}
        names = (*([special[bos_id]] if bos_id in special else []), BOS, "<|begin_of_text|>", "<bos>", "<s>")
        bos_token = next((name for name in names if name in special.values()), None)
    return _wrap(backend, bos_token)


def _wrap(backend: tokenizers.Tokenizer, bos_token: str | None) -> Tokenizer:
    special = {i for i, token in backend.get_added_tokens_decoder().items() if token.special}
    bos_id = None if bos_token is None else backend.token_to_id(bos_token)
    return Tokenizer(backend, bos_id, frozenset(special | ({bos_id} if bos_id is not None else set())))
