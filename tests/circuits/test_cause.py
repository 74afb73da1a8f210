"""The search for a set of components that undoes a prediction, on a model whose causes are known."""

from __future__ import annotations

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jax_interp.circuits import make_contrast
from jax_interp.circuits.cause import components_of, find_cause, set_metrics
from jax_interp.core.errors import UserError
from jax_interp.core.pytrees import register_dataclass
from jax_interp.surgery import Site

HEADS = 6


@register_dataclass
@dataclasses.dataclass(frozen=True)
class Cabinet:
    """Head h at position p carries entry h of the table for the token at p. The output is a function of the heads at
    the last position, and of head 5 at the first."""

    table: jax.Array
    either: bool = dataclasses.field(default=False, metadata={"static": True})

    def __call__(self, tokens, *, taps=()):
        site = Site.open(taps)
        z = site("z", self.table[tokens][..., None], "batch pos head d_head")[..., 0]
        last, first = z[:, -1], z[:, 0, 5]
        redundant = jnp.maximum(last[:, 0], last[:, 1])
        total = 2 * redundant - 1 if self.either else last[:, 0] + last[:, 1] + first - 1.5
        return site.close(total[:, None, None])


def searched(either):
    """Token 0 has 1 in every head, tokens 1 and 2 have 0."""
    model = Cabinet(jnp.stack([jnp.ones(HEADS), jnp.zeros(HEADS), jnp.zeros(HEADS)]), either)
    prompts = jnp.zeros((4, 3), jnp.int32)
    contrasts = [make_contrast(prompts, prompts + token, lambda logits: logits[:, -1, 0]) for token in (1, 2)]
    classes = {"last": [2], "middle": [1], "first": [0], "none": []}
    components = components_of(model, contrasts[0], classes, addresses=("z",))
    return find_cause(model, contrasts[0], components, contrasts[1], random_sets=30, rows=16), components


def test_two_of_three_causes_that_add_up():
    """3 - 1.5 = 1.5, and each of three components takes away 1: two of them undo the prediction, one does not."""
    cause, components = searched(either=False)
    assert len(components.names) == 3 * HEADS
    assert cause.base == 1.5
    drops = {components.names[i]: drop for i, drop, _ in cause.ranked()}
    causes = {"H0, last", "H1, last", "H5, first"}
    assert {name for name, drop in drops.items() if drop == 1.0} == causes
    assert all(drop == 0.0 for name, drop in drops.items() if name not in causes)
    chosen = {components.names[i] for i in cause.chosen}
    assert len(chosen) == 2
    assert chosen < causes
    np.testing.assert_allclose(cause.chosen_metric, -0.5)
    np.testing.assert_allclose(cause.everything, -1.5)
    np.testing.assert_allclose(cause.others, -1.5)
    assert cause.random.shape[1] == 4
    assert 0 < len(cause.random) <= 30
    assert cause.random.mean() > 0


def test_causes_that_back_each_other_up():
    """max(a, b): neither alone changes anything, so only the search over sets finds them."""
    cause, components = searched(either=True)
    assert max(drop for _, drop, _ in cause.ranked()) == 0.0
    assert {components.names[i] for i in cause.chosen} == {"H0, last", "H1, last"}
    np.testing.assert_allclose(cause.chosen_metric, -1.0)


def test_nothing_undoes_what_the_others_predict_too():
    model = Cabinet(jnp.ones((3, HEADS)))
    contrast = make_contrast(jnp.zeros((2, 3), int), jnp.ones((2, 3), int), lambda logits: logits[:, -1, 0])
    components = components_of(model, contrast, {"all": range(3)}, addresses=("z",))
    cause = find_cause(model, contrast, components, contrast)
    assert cause.chosen == ()
    np.testing.assert_allclose(cause.everything, cause.base)


def test_sets_of_any_number_run_one_program_and_what_is_refused():
    model = Cabinet(jnp.stack([jnp.ones(HEADS), jnp.zeros(HEADS)]))
    contrast = make_contrast(jnp.zeros((2, 3), int), jnp.ones((2, 3), int), lambda logits: logits[:, -1, 0])
    components = components_of(model, contrast, {"all": range(3)}, addresses=("z",))
    sets = np.random.default_rng(0).random((5, HEADS)) < 0.5
    found = set_metrics(model, contrast, components, sets, rows=6)
    by_hand = 1.5 - sets[:, [0, 1, 5]].sum(1)
    np.testing.assert_allclose(found, np.repeat(by_hand[:, None], 2, 1))
    swapped = dataclasses.replace(contrast, clean=contrast.corrupted, corrupted=contrast.clean)
    with pytest.raises(UserError, match=r"the metric of the prompt is -1\.5"):
        find_cause(model, swapped, components, swapped)
    with pytest.raises(UserError, match="two or more of each"):
        find_cause(model, contrast, components, contrast.rows(slice(1)))
