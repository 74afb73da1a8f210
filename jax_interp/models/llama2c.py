"""Load models of llama2.c (Karpathy): a `.bin` file of weights, and a `.bin` file of the tokenizer."""

from __future__ import annotations

import math
import re
import struct
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np

from jax_interp.core.errors import UserError
from jax_interp.core.leaves import unflatten
from jax_interp.models.config import Config
from jax_interp.models.decoder import Decoder, init

BOS, EOS = 1, 2


@dataclass(frozen=True)
class PieceTokenizer:
    """A llama2.c tokenizer. It decodes only."""

    pieces: tuple[bytes, ...]
    """The bytes of each token id. A token that starts a word begins with a space."""

    def decode_bytes(self, tokens: Iterable[int]) -> bytes:
        """The bytes of the tokens, without BOS, EOS and the space at the start of the text.

        Raises:
          UserError: there is no such token.
        """
        tokens = [int(token) for token in tokens]
        if outside := [token for token in tokens if not 0 <= token < len(self.pieces)]:
            raise UserError(f"there is no token {outside[0]}: the tokenizer has {len(self.pieces)}, from 0")
        decoded = [self.pieces[token] for token in tokens if token not in (BOS, EOS)]
        return b"".join(decoded[:1]).removeprefix(b" ") + b"".join(decoded[1:])

    def decode(self, tokens: Iterable[int]) -> str:
        """The text of the tokens. Bytes that are not a character become U+FFFD."""
        return self.decode_bytes(tokens).decode("utf-8", errors="replace")


def load_llama2c(weights: str | Path, tokenizer: str | Path | None = None) -> tuple[Decoder, PieceTokenizer | None]:
    """Load a llama2.c model, with stacked blocks, in float32.

    In the file the rotary pairs are adjacent features (2i, 2i + 1). Here they are (i, i + half). The features of
    queries and keys are therefore reordered within each head. This does not change the attention scores.

    Args:
      weights: the file of the model.
      tokenizer: the file of the tokenizer.

    Returns:
      `(model, tokenizer)`. The tokenizer is None if no file is given.

    Raises:
      UserError: a file is missing or has another layout.

    Example:
        model, tokenizer = load_llama2c("stories260K.bin", "tok512.bin")
        print(tokenizer.decode(generate(model, jnp.array([[1]]), 100)[0]))
    """
    data = _bytes(weights)
    config, offset = _config(data, weights)
    abstract = jax.eval_shape(lambda key: init(config, key), jax.random.key(0))
    leaves = {}
    for name, shape in _layout(config):
        size = math.prod(shape)
        if len(data) < offset + 4 * size:
            raise UserError(f"{weights} ends within {name}: it has only {len(data)} bytes")
        array = np.frombuffer(data, "<f4", size, offset).reshape(shape)
        offset += 4 * size
        if not np.isfinite(array).all():
            raise UserError(f"{weights} has NaN or infinite values in {name}: the training diverged, or it is damaged")
        if name.endswith(("attn.q.weight", "attn.k.weight")):
            array = _half_split(array, config.d_head)
        if name.endswith(".weight") and name.split(".")[-2] in ("q", "k", "v", "o", "gate", "up", "down", "unembed"):
            array = array.swapaxes(-1, -2)
        leaves[name] = jnp.asarray(array, jnp.float32)
    if offset != len(data):
        raise UserError(f"{weights} has {len(data)} bytes; the model that its header describes has {offset}")
    leaves = {name: leaf for name, leaf in leaves.items() if not name.startswith("rotary")}
    return unflatten(abstract, leaves), None if tokenizer is None else _tokenizer(tokenizer, config.vocab_size)


def _config(data: bytes, where: str | Path) -> tuple[Config, int]:
    """The config, and the offset of its end in the file.

    The header has seven int32: d_model, d_mlp, layers, heads, key/value heads, vocabulary (negative if the unembedding
    is not tied), context.
    """
    if len(data) < 28:
        raise UserError(f"{where} has {len(data)} bytes, fewer than the header of a llama2.c model")
    d_model, d_mlp, n_layers, n_heads, n_kv_heads, vocab_size, n_ctx = struct.unpack("<7i", data[:28])
    if not all(0 < n < 2**24 for n in (d_model, d_mlp, n_layers, n_heads, n_kv_heads, abs(vocab_size), n_ctx)):
        raise UserError(f"{where} does not start with the sizes of a llama2.c model")
    return (
        Config(
            n_layers=n_layers,
            d_model=d_model,
            n_heads=n_heads,
            n_kv_heads=n_kv_heads,
            d_mlp=d_mlp,
            vocab_size=abs(vocab_size),
            n_ctx=n_ctx,
            norm_eps=1e-5,
            tied_embedding=vocab_size > 0,
        ),
        28,
    )


def _layout(c: Config) -> list[tuple[str, tuple[int, ...]]]:
    """The arrays of the file, in order: the address in the model, and the shape in the file.

    In the file the layer axis comes first and weights are `[out, in]`.
    """
    width, kv_width, half = c.n_heads * c.d_head, c.n_kv_heads * c.d_head, c.d_head // 2
    blocks = (
        ("ln1", (c.d_model,)),
        ("attn.q", (width, c.d_model)),
        ("attn.k", (kv_width, c.d_model)),
        ("attn.v", (kv_width, c.d_model)),
        ("attn.o", (c.d_model, width)),
        ("ln2", (c.d_model,)),
        ("mlp.gate", (c.d_mlp, c.d_model)),
        ("mlp.down", (c.d_model, c.d_mlp)),
        ("mlp.up", (c.d_mlp, c.d_model)),
    )
    return [
        ("embed.weight", (c.vocab_size, c.d_model)),
        *((f"blocks.0.block.{name}.weight", (c.n_layers, *shape)) for name, shape in blocks),
        ("ln_final.weight", (c.d_model,)),
        ("rotary.cos", (c.n_ctx, half)),  # base 10,000; not used, because `rotation` computes these values
        ("rotary.sin", (c.n_ctx, half)),
        *([] if c.tied_embedding else [("unembed.weight", (c.vocab_size, c.d_model))]),
    ]


def _half_split(weight: np.ndarray, d_head: int) -> np.ndarray:
    """`[layer, head * (pair, 2), in]` as `[layer, head * (2, pair), in]`."""
    layers, _, d_in = weight.shape
    return weight.reshape(layers, -1, d_head // 2, 2, d_in).swapaxes(2, 3).reshape(layers, -1, d_in)


def _tokenizer(path: str | Path, vocab_size: int) -> PieceTokenizer:
    """Read the tokenizer.

    The file has an int32 (the length of the longest piece). Then it has for each piece a float32 score, an int32
    length, and the bytes. A piece such as `<0x0A>` means a single byte.
    """
    data, offset, pieces = _bytes(path), 4, []
    try:
        for _ in range(vocab_size):
            _, length = struct.unpack_from("<fi", data, offset)
            (piece,) = struct.unpack_from(f"{length}s", data, offset + 8)
            offset += 8 + length
            pieces.append(bytes([int(piece[3:5], 16)]) if re.fullmatch(rb"<0x[0-9A-F]{2}>", piece) else piece)
    except struct.error:
        raise UserError(f"{path} holds {len(pieces)} pieces, the model has {vocab_size}") from None
    return PieceTokenizer(tuple(pieces))


def _bytes(path: str | Path) -> bytes:
    try:
        return Path(path).read_bytes()
    except OSError as error:
        raise UserError(f"cannot read {path}: {error.strerror}") from None
