"""Read a `config.json`. An attribute that is not understood is an error, so it cannot lead to a wrong model.

An attribute that is absent and one that is null are different things, as in transformers: Gemma 2 without
`attn_logit_softcapping` caps its scores at 50, and with null it does not cap them.
"""

from __future__ import annotations

import difflib
import math
from collections.abc import Iterable, Mapping
from typing import Any, TypeVar, cast

from jax_interp.core.errors import UserError

T = TypeVar("T")
D = TypeVar("D")

GENERATION = (
    *("max_length", "max_new_tokens", "min_length", "do_sample", "early_stopping", "num_beams", "num_beam_groups"),
    *("diversity_penalty", "temperature", "top_k", "top_p", "min_p", "typical_p", "repetition_penalty"),
    *("length_penalty", "no_repeat_ngram_size", "encoder_no_repeat_ngram_size", "bad_words_ids"),
    *("num_return_sequences", "output_scores", "return_dict_in_generate", "forced_bos_token_id", "forced_eos_token_id"),
    *("remove_invalid_values", "exponential_decay_length_penalty", "suppress_tokens", "begin_suppress_tokens"),
    *("cache_implementation", "use_cache"),
)
"""Defaults of generation, which earlier versions of transformers wrote into a `config.json`."""

IRRELEVANT: frozenset[str] = frozenset(
    (
        *("architectures", "model_type", "_name_or_path", "name_or_path", "transformers_version", "_commit_hash"),
        *("tokenizer_class", "prefix", "unsloth_version", "unsloth_fixed"),
        *("dtype", "torch_dtype", "use_bfloat16", "torchscript", "tf_legacy_loss", "gradient_checkpointing"),
        *("_attn_implementation", "attn_implementation", "_attn_implementation_autoset"),
        *("bos_token_id", "eos_token_id", "pad_token_id", "sep_token_id", "decoder_start_token_id"),
        *("attention_dropout", "classifier_dropout", "initializer_range", "chunk_size_feed_forward", "is_decoder"),
        *("return_dict", "output_attentions", "output_hidden_states", "tie_encoder_decoder"),
        *("id2label", "label2id", "num_labels", "_num_labels", "problem_type", "finetuning_task"),
        "task_specific_params",
        *GENERATION,
    )
)
"""Attributes that do not affect the logits: token ids, dropout, labels, defaults of generation and training."""

OFF: Mapping[str, Any] = {
    "add_cross_attention": False,
    "attention_bias": False,
    "cross_attention_hidden_size": None,
    "is_encoder_decoder": False,
    "mlp_bias": False,
    "per_layer_config": None,
    "pruned_heads": {},
    "quantization_config": None,
    "use_mrope": False,
}
"""Attributes that switch a feature on. A family without the feature accepts them where they are off."""

MOST_LAYERS = 10_000
"""The most layers that a `config.json` may give. No model has as many: the number is damaged."""

KINDS = {int: "a whole number", float: "a number", bool: "true or false", str: "a string", list: "a list"}
KINDS |= {dict: "an object"}
_REFUSED: Any = object()


class Attributes:
    """The attributes of one `config.json`.

    A family takes the attributes that it understands. `close` raises an error for the remaining attributes.

    Args:
      values: the content of the file.
      where: the name of the file, for messages.
    """

    def __init__(self, values: Mapping[str, Any], where: str):
        self._values, self.where, self._seen = dict(values), where, set[str](IRRELEVANT)

    def __len__(self) -> int:
        return len(self._values)

    def take(self, name: str, kind: type[T], *absent: D, null: Any = _REFUSED, also: Iterable[str] = ()) -> T | D:
        """The value of an attribute.

        Args:
          name: the attribute.
          kind: what its value must be: `int`, `float` (a finite number), `bool`, `str`, `list` or `dict`.
          absent: the value of an attribute that the file does not have. Without it, the attribute is needed.
          null: the value of an attribute that is null. Without it, null is refused.
          also: other names of the attribute. Two names must not have two values.

        Raises:
          UserError: the attribute is absent but needed, or it has a value of another kind.
        """
        names = (name, *also)
        self._seen.update(names)
        given = {known: self._values[known] for known in names if known in self._values}
        values = {known: value for known, value in given.items() if value is not None}
        if values:
            first, value = next(iter(values.items()))
            for other in values:
                if values[other] != value:
                    raise UserError(
                        f"{self.where} gives both {first}={_short(value)} and {other}={_short(values[other])}"
                    )
            return self._checked(first, value, kind)
        if given and null is not _REFUSED:
            return null
        if given and None not in absent:  # where absent means null, null means absent
            raise UserError(f"{self.where} has {next(iter(given))}=null, which needs {KINDS[kind]}")
        if absent:
            return absent[0]
        near = difflib.get_close_matches(name, self._values, n=1)
        hint = f"; it has {near[0]!r}" if near else ""
        raise UserError(f"{self.where} does not give {name!r}{hint}")

    def _checked(self, name: str, value: Any, kind: type[T]) -> T:
        """The value, if it is of this kind. A whole number is also a number."""
        whole = isinstance(value, int) and not isinstance(value, bool)
        found = float(value) if kind is float and whole and abs(value) < 2**63 else value
        right = isinstance(found, kind) and not (kind is int and not whole)
        if right and kind is int:
            right = abs(cast(int, found)) < 2**31
        if right and kind is float:
            right = math.isfinite(cast(float, found))
        if not right:
            raise UserError(f"{self.where} has {name}={_short(value)}, which needs {KINDS[kind]}")
        return cast(T, found)

    def size(self, name: str, *absent: int, null: Any = _REFUSED, most: int = 2**31, also: Iterable[str] = ()) -> int:
        """A whole number from 1 to `most`. Raises `UserError` for another value."""
        n = self.take(name, int, *absent, null=null, also=also)
        if not 1 <= n <= most:
            raise UserError(f"{self.where} has {name}={n}, which must be from 1 to {most}")
        return n

    def layers(self, name: str) -> int:
        """The number of layers, in the attribute `name`."""
        return self.size(name, most=MOST_LAYERS)

    def table(self, name: str, *, also: Iterable[str] = ()) -> Attributes:
        """The attributes of an object. An absent or null object has none."""
        return Attributes(self.take(name, dict, {}, null={}, also=also), f"{self.where}, {name},")

    def require(self, name: str, value: object, why: str) -> None:
        """Raise `UserError` if `name` is given with another value than `value`. `why` is the end of the message.

        Null is accepted where `value` is false or empty.
        """
        self._seen.add(name)
        given = self._values.get(name, value)
        if given != value and not (given is None and not value):
            raise UserError(f"{self.where} has {name}={_short(given)}, supported is {value!r}: {why}")

    def choose(self, name: str, choices: Mapping[str, T], *absent: str, null: Any = _REFUSED) -> T:
        """The entry of `choices` for the value of `name`. Raises `UserError` if there is no such entry."""
        given = self.take(name, str, *absent, null=null)
        if given not in choices:
            raise UserError(f"{self.where} has {name}={_short(given)}; supported are {', '.join(map(repr, choices))}")
        return choices[given]

    def ignore(self, *names: str) -> None:
        """Accept attributes that the forward pass does not depend on."""
        self._seen.update(names)

    def close(self) -> None:
        """Raise `UserError` for attributes that were not taken, also if they are null or false."""
        if "auto_map" in self._values:
            raise UserError(f"{self.where} asks for its own code (auto_map): code from a checkpoint is never run")
        for name in OFF.keys() - self._seen:
            self.require(name, OFF[name], "this family has no such feature")
        left = [f"{k[:80]}={_short(v)}" for k, v in self._values.items() if k not in self._seen]
        if left:
            shown = ", ".join(left[:10]) + (f" and {len(left) - 10} more" if len(left) > 10 else "")
            raise UserError(
                f"{self.where} has attributes that are not understood and may change what the model computes: "
                f"{shown}. Remove those that have no effect. To support the others, implement them in the file of the "
                "family"
            )


def _short(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 80 else f"{text[:77]}..."
