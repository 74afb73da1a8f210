"""A judge that knows the true features of a synthetic world: a test of the protocol, and what a perfect judge reaches.

    model, batch_at = as_model(world, key)
    judge = KnownFeaturesJudge(model)
    report = interpret(Latents(sae, None, "x"), model, batches, judge.strings, judge, units)

A token of the model is the number of a row of the world. The judge reads these numbers, and knows which features are on
in each row. Its explanation of a unit is "feature 17": the feature that best tells the marked tokens from the others.
"""

from __future__ import annotations

from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Float, Int

from jax_interp.core.errors import UserError
from jax_interp.dashboards.interpretation.judge import Request, Shown
from jax_interp.toys.synthetic import WorldModel


class KnownFeaturesJudge:
    """A judge that looks up the true codes of the tokens. It answers as a language model would, in words.

    Args:
      model: the model made from the world, from `as_model`.
    """

    def __init__(self, model: WorldModel):
        draw = lambda number: model.world.sample(jax.random.fold_in(model.key, number), 1)[1][0]
        self._draw = jax.jit(jax.vmap(draw))
        self._known: dict[int, np.ndarray] = {}

    @staticmethod
    def strings(tokens: Int[np.ndarray, " token"]) -> list[str]:
        """The texts of tokens: their numbers, with a space before each."""
        return [f" {int(token)}" for token in tokens]

    def __call__(self, requests: Sequence[Request]) -> list[str]:
        """Answer requests.

        Raises:
          UserError: a token is no number of a row, or an explanation is not of this judge.
        """
        return [getattr(self, f"_{request.kind}")(request) for request in requests]

    def _codes(self, example: Shown) -> Float[np.ndarray, "token feature"]:
        try:
            rows = [int(token) for token in example.tokens]
        except ValueError:
            raise UserError(f"{example.tokens!r:.80} are no row numbers: give `judge.strings` as the strings") from None
        missing = sorted(set(rows) - set(self._known))
        for first in range(0, len(missing), 64):  # in equal parts, so that one program is compiled
            part = missing[first : first + 64]
            padded = np.asarray(part + [0] * (64 - len(part)), np.int32)
            codes = np.asarray(self._draw(jnp.asarray(padded)))[: len(part)]
            self._known.update(zip(part, codes))
        return np.stack([self._known[row] for row in rows])

    def _feature(self, request: Request, example: Shown) -> Float[np.ndarray, " token"]:
        word, _, number = (request.explanation or "").partition(" ")
        codes = self._codes(example)
        if word != "feature" or not number.isdecimal() or int(number) >= codes.shape[1]:
            raise UserError(f'{request.explanation!r} is no explanation of this judge, such as "feature 3"')
        return codes[:, int(number)]

    def _explanation(self, request: Request) -> str:
        on = np.concatenate([self._codes(example) for example in request.examples]) > 0
        marked = np.concatenate([np.asarray(example.marked, bool) for example in request.examples])
        right = 2 * (on & marked[:, None]).sum(0)
        f1 = right / np.maximum(on.sum(0) + marked.sum(), 1)
        return f"This unit is on for feature {int(np.argmax(f1))}."

    def _detection(self, request: Request) -> str:
        return _listed(bool((self._feature(request, example) > 0).any()) for example in request.examples)

    def _fuzzing(self, request: Request) -> str:
        fits = (np.mean(self._feature(request, e)[np.asarray(e.marked, bool)] > 0) > 0.5 for e in request.examples)
        return _listed(map(bool, fits))

    def _simulation(self, request: Request) -> str:
        code = np.maximum(self._feature(request, request.examples[0]), 0)
        largest = max(float(code.max()), 1.0)
        return "\n".join(f"{i}: {10 * float(value) / largest:.2f}" for i, value in enumerate(code, 1))


def _listed(answers) -> str:
    return ", ".join(str(i) for i, yes in enumerate(answers, 1) if yes) or "None"
