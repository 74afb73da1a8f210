"""Greater-than: "The war lasted from the year 1732 to the year 17" is followed by a number above 32.

Hanna, Liu & Variengien 2023 (arXiv:2305.00586). The metric is the probability of the years above YY minus that of the
years up to YY, over all numbers of two digits. In the corrupted prompt YY is 01, so every later year is possible.
"""

from __future__ import annotations

import dataclasses

import jax.numpy as jnp
import numpy as np
from jaxtyping import Int

from jax_interp.circuits.contrast import make_contrast
from jax_interp.circuits.metrics import ProbabilityDifference
from jax_interp.circuits.tasks.examples import Examples
from jax_interp.circuits.tasks.task import TASKS, PublishedCircuit, Task, check_count
from jax_interp.circuits.tasks.wording import encode_pairs, fill, one_token, texts, words
from jax_interp.core.errors import UserError
from jax_interp.data.tokenizer import Tokenizer

TEMPLATE = "The {NOUN} lasted from the year{XX}{YY} to the year{XX}"
NOUNS = words(
    "war campaign project trial search program reign strike march journey career contract treaty crisis peace "
    "expedition marriage alliance conflict debate dispute study work test plan"
)
CENTURIES = range(11, 18)


@TASKS.register
@dataclasses.dataclass(frozen=True)
class GreaterThan(Task):
    """Greater-than. A year must be two tokens, as " 17" and "32": other years are not used."""

    name = "greater-than"
    about = "A year that ends something is later than the year in which it began."
    published = PublishedCircuit(
        model="gpt2",
        heads={
            "start of the year": ((0, 1), (0, 3), (0, 5)),
            "attention to YY": ((5, 5), (6, 1), (6, 9), (7, 10), (8, 11), (9, 1)),
        },
        positions={"start of the year": "YY", "attention to YY": "end"},
        mlps=(0, 1, 2, 3, 8, 9, 10, 11),
        figures={"probability difference": 0.814},
        source="Hanna, Liu & Variengien 2023, arXiv:2305.00586; the figure is that of EAP-IG's 1,000 examples",
    )

    def sample(self, tokenizer: Tokenizer, n: int, seed: int = 0) -> Examples:
        check_count(n)
        nouns = one_token(tokenizer, NOUNS, 1, "nouns")
        years, digits = _years(tokenizer)
        rng = np.random.default_rng(seed)
        drawn = [(str(rng.choice(nouns)), *years[int(rng.integers(len(years)))]) for _ in range(n)]
        sides = [
            [
                fill(TEMPLATE, {"NOUN": f"{noun}", "XX": f" {century}", "YY": f"{year:02d}" if clean else "01"})
                for noun, century, year in drawn
            ]
            for clean in (True, False)
        ]
        encoded = encode_pairs(tokenizer, sides[0], sides[1])
        sign = np.zeros((n, max(tokenizer.vocab_size, tokenizer.model_ids or 0)), np.float32)
        for row, (_, _, year) in enumerate(drawn):
            sign[row, digits] = np.where(np.arange(100) > year, 1.0, -1.0)
        positions = {
            "NOUN": encoded.positions["NOUN"], "XX": encoded.positions["XX"], "YY": encoded.positions["YY"],
            "end": encoded.positions["end"],
        }  # fmt: skip
        factors = {
            "noun": tuple(noun for noun, _, _ in drawn),
            "century": tuple(str(century) for _, century, _ in drawn),
            "decade": tuple(str(year // 10) for _, _, year in drawn),
        }
        contrast = make_contrast(
            encoded.clean, encoded.corrupted, ProbabilityDifference(jnp.asarray(sign)), mask=encoded.mask
        )
        answers = np.asarray([digits[min(year + 1, 99)] for _, _, year in drawn], np.int32)
        return Examples(contrast, texts(sides[0]), texts(sides[1]), positions, factors, answers)


def _years(tokenizer: Tokenizer) -> tuple[list[tuple[int, int]], Int[np.ndarray, " year"]]:
    """(century, year) of all years that are two tokens, and the ids of 00 to 99 after a century."""
    numbers = tokenizer.encode_batch([f"{year:02d}" for year in range(100)], bos=False)
    if any(len(ids) != 1 for ids in numbers):
        raise UserError("greater-than needs a token for each of 00 to 99, and this tokenizer has not all of them")
    digits = np.asarray([ids[0] for ids in numbers], np.int32)
    # The first and last years leave too few numbers on one side.
    wanted = [(century, year) for century in CENTURIES for year in range(2, 99)]
    encoded = tokenizer.encode_batch([f" {c}{y:02d}" for c, y in wanted], bos=False)
    first = {century: tokenizer.encode(f" {century}", bos=False) for century in CENTURIES}
    years = [(c, y) for (c, y), ids in zip(wanted, encoded) if ids == [*first[c], digits[y]] and len(first[c]) == 1]
    # The corrupted prompt needs the year 01 in the same century.
    start = {c: tokenizer.encode(f" {c}01", bos=False) == [*first[c], digits[1]] for c in CENTURIES}
    years = [(century, year) for century, year in years if start[century]]
    if not years:
        raise UserError("greater-than needs years of two tokens, as ' 17' and '32', and this tokenizer has none")
    return years, digits
