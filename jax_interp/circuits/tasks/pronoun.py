"""Gendered pronoun: "So Alice is such a good friend, isn't" is followed by " she" (after Mathwin et al. 2023)."""

from __future__ import annotations

import dataclasses

import jax.numpy as jnp
import numpy as np

from jax_interp.circuits.contrast import make_contrast
from jax_interp.circuits.metrics import LogitDifference
from jax_interp.circuits.tasks.examples import Examples
from jax_interp.circuits.tasks.task import TASKS, Task, check_count
from jax_interp.circuits.tasks.wording import encode_pairs, fill, one_token, texts, word_ids, words
from jax_interp.data.tokenizer import Tokenizer

FEMALE = words(
    "Alice Amy Anna Claire Diana Elizabeth Emily Emma Grace Helen Jane Jennifer Jessica Kate Laura Lisa Lucy Maria "
    "Mary Michelle Rachel Rebecca Rose Ruby Sarah Susan Victoria"
)
MALE = words(
    "Adam Alan Andrew Anthony Arthur Brian Charles Daniel David Edward Eric Frank George Henry Jack James John Joseph "
    "Kevin Mark Martin Matthew Michael Paul Peter Richard Robert Simon Stephen Thomas Tom"
)
TEMPLATES = (
    "So {NAME} is such a good friend, isn't",
    "So {NAME} is really a fast runner, isn't",
    "I heard that {NAME} is a very kind person, isn't",
    "Everybody says that {NAME} is a clever student, isn't",
)


@TASKS.register
@dataclasses.dataclass(frozen=True)
class Pronoun(Task):
    """Gendered pronouns. In the corrupted prompt the name is one of the other gender."""

    name = "pronoun"
    about = "The pronoun after a name has the gender that the name usually has."

    def sample(self, tokenizer: Tokenizer, n: int, seed: int = 0) -> Examples:
        check_count(n)
        female = one_token(tokenizer, FEMALE, 2, "female names")
        names = {"she": female, "he": one_token(tokenizer, MALE, 2, "male names")}
        rng, drawn = np.random.default_rng(seed), []
        for i in range(n):
            right, wrong = (("she", "he"), ("he", "she"))[i % 2]
            template = int(rng.integers(len(TEMPLATES)))
            drawn.append((template, str(rng.choice(names[right])), str(rng.choice(names[wrong])), right, wrong))
        sides = [[fill(TEMPLATES[one[0]], {"NAME": one[k]}) for one in drawn] for k in (1, 2)]
        encoded = encode_pairs(tokenizer, sides[0], sides[1])
        answers, others = (word_ids(tokenizer, [one[k] for one in drawn]) for k in (3, 4))
        factors = {
            "template": tuple(str(one[0]) for one in drawn), "name": tuple(one[1] for one in drawn),
            "pronoun": tuple(one[3] for one in drawn),
        }  # fmt: skip
        metric = LogitDifference(jnp.asarray(answers), jnp.asarray(others))
        contrast = make_contrast(encoded.clean, encoded.corrupted, metric, mask=encoded.mask)
        return Examples(contrast, texts(sides[0]), texts(sides[1]), encoded.positions, factors, answers)
