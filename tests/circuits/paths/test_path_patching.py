"""Path patching against the four runs of its definition, in a decoder written in NumPy float64."""

from __future__ import annotations

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from small_models import GPT2_LIKE, LLAMA_LIKE, peaky

from jax_interp import replan
from jax_interp.circuits import LogitDifference, baseline, make_contrast
from jax_interp.circuits.paths import direct_paths, path_patch, shape_of
from jax_interp.core.errors import UserError
from tests.laws import numpy_decoder
from tests.toy import toy

CONFIG = dataclasses.replace(LLAMA_LIKE, tied_embedding=True, rope=dataclasses.replace(LLAMA_LIKE.rope, scaling=None))
HEADS = [f"a{i}.h{h}" for i in range(3) for h in range(4)]
PARTS = [*HEADS, "m0", "m1", "m2", "input"]


def prompts(seed: int = 0, mask=None):
    rng = np.random.default_rng(seed)
    clean, corrupted = (rng.integers(0, 60, (3, 6), np.int32) for _ in range(2))
    return make_contrast(clean, corrupted, LogitDifference(jnp.asarray([3, 5, 8]), 7), mask=mask)


class Reference:
    """The four runs, with all values kept by name. `read` and `set` are about one text at a time."""

    def __init__(self, model, contrast):
        self.model, self.contrast = model, contrast
        unrolled = replan(model, "*")
        self.weights = numpy_decoder.weights_of(unrolled)

    def run(self, tokens, changes=()):
        """(metric, values). `changes` are functions (address, values) -> values, in order."""
        kept = {}

        def name(address, values):
            for change in changes:
                values = change(address, values)
            kept[address] = [value.copy() for value in values]
            return values

        texts = [np.asarray(row) for row in tokens]
        logits = np.stack(numpy_decoder.run(self.weights, self.model.config, texts, name))
        return np.asarray(self.contrast.metric(jnp.asarray(logits))), kept

    def paths(self, sender, receivers, direction, freeze_mlps):
        source, target = self.contrast.runs(direction)
        (_, sent), (_, own) = self.run(source), self.run(target)
        third, seen = self.run(target, [freezing(own, freeze_mlps), sending(sender, sent)])
        if receivers == "logits":
            return third
        return self.run(target, [receiving(receiver, seen) for receiver in receivers])[0]


def freezing(own, mlps):
    frozen = (".attn.z", ".mlp_out") if mlps else (".attn.z",)
    return lambda address, values: own[address] if address.endswith(frozen) else values


def sending(sender, sent):
    def change(address, values):
        if sender == "input":
            return sent["embed"] if address == "blocks.0.resid_pre" else values
        layer = sender[1:].split(".")[0]
        if sender[0] == "m":
            return sent[address] if address == f"blocks.{layer}.mlp_out" else values
        if address != f"blocks.{layer}.attn.z":
            return values
        return [put(row, other, int(sender.split("h")[1])) for row, other in zip(values, sent[address], strict=True)]

    return change


def receiving(receiver, seen):
    """The receiver's own projections of what it saw: all queries of a head, or the hidden values of an MLP."""
    layer = receiver[1:].split(".")[0]

    def change(address, values):
        if receiver[0] == "m":
            return seen[address] if address.startswith(f"blocks.{layer}.mlp.pre") else values
        head, part = receiver.split("h")[1].split("<")
        if address != f"blocks.{layer}.attn.{part[0]}":
            return values
        return [put(row, other, int(head)) for row, other in zip(values, seen[address], strict=True)]

    return change


def put(row, other, head):
    row = row.copy()
    row[:, head] = other[:, head]
    return row


@pytest.fixture(autouse=True)
def float64():
    with jax.enable_x64(True):
        yield


@pytest.fixture(scope="module")
def exact():
    with jax.enable_x64(True):
        return peaky(CONFIG, dtype=jnp.float64)


@pytest.mark.parametrize(
    ("direction", "freeze_mlps"), [("noise", False), pytest.param("denoise", True, marks=pytest.mark.slow)]
)
def test_paths_are_the_four_runs(exact, direction, freeze_mlps):
    contrast = prompts()
    reference = Reference(exact, contrast)
    for receivers in (["a2.h1<q>", "a1.h0<k>", "a2.h1<v>", "m2"], "logits"):
        got = path_patch(exact, contrast, PARTS, receivers, direction=direction, freeze_mlps=freeze_mlps, batch_size=5)
        assert got.axes["sender"] == tuple(PARTS)
        expected = [reference.paths(sender, receivers, direction, freeze_mlps) for sender in PARTS]
        np.testing.assert_allclose(got.values, expected, rtol=0, atol=1e-11)


def test_direct_paths_are_paths_without_mlps_between(exact):
    contrast = prompts()
    receivers = ["a1.h3<q>", "a2.h0<q>", "a2.h1<k>", "a2.h0<v>", "m1"]
    got = direct_paths(exact, contrast, PARTS, receivers, batch_size=2)
    plain = np.asarray(baseline(exact, contrast)[1])
    reference = Reference(exact, contrast)
    for j, receiver in enumerate(receivers):
        expected = [reference.paths(sender, [receiver], "denoise", True) for sender in PARTS]
        np.testing.assert_allclose(got.values[:, j], expected, rtol=0, atol=1e-11)
    later = got.values[PARTS.index("a2.h0")]  # nothing here is later than a head of the last layer
    np.testing.assert_array_equal(later, np.broadcast_to(plain, later.shape))


def test_all_parts_as_one_sender_is_the_other_run(exact):
    """Every writer of the stream takes the corrupted value, so the logits are those of the corrupted run."""
    contrast = prompts()
    got = path_patch(exact, contrast, [PARTS], "logits", freeze_mlps=True)
    np.testing.assert_allclose(got.values[0], baseline(exact, contrast)[1], rtol=0, atol=1e-11)
    assert got.axes["sender"] == (" + ".join(PARTS),)


def test_positions_of_senders_and_receivers(exact):
    """A causal model: a sender at the last position cannot reach earlier receivers. Halves add up to the whole."""
    contrast = prompts()
    plain = np.asarray(baseline(exact, contrast)[0])
    senders = [("a0.h1", -1), ("a0.h1", 5), ("a0.h1", np.arange(6) == 5), [("a0.h1", [0, 1, 2, 3, 4]), ("a0.h1", -1)],
               "a0.h1", ("a0.h1", slice(0, 3))]  # fmt: skip
    early = path_patch(exact, contrast, senders, ("a1.h1<v>", slice(0, 3))).values
    np.testing.assert_array_equal(early[:3], np.broadcast_to(plain, (3, 3)))
    np.testing.assert_array_equal(early[3:5], early[[4, 4]])
    assert np.abs(early[5] - plain).max() > 1e-4
    last = path_patch(exact, contrast, senders, "logits").values
    np.testing.assert_array_equal(last[[1, 2]], last[[0, 0]])
    assert np.abs(last[0] - plain).max() > 1e-3


@pytest.mark.slow
def test_padding_is_no_position_and_changes_no_path(exact):
    contrast = prompts()
    left = lambda tokens: jnp.concatenate([jnp.full((3, 2), -1, tokens.dtype), tokens], axis=1)
    padded = make_contrast(left(contrast.clean), left(contrast.corrupted), contrast.metric,
                           mask=np.arange(8)[None] >= np.full((3, 1), 2))  # fmt: skip
    senders = ["a0.h1", "input", ("a1.h2", 0), ("m1", -1), ("m0", slice(1, None)), ("a0.h0", [1, -2])]
    for receivers in (["a2.h1<q>", ("m2", -1)], "logits"):
        np.testing.assert_allclose(
            path_patch(exact, padded, senders, receivers).values,
            path_patch(exact, contrast, senders, receivers).values,
            rtol=0,
            atol=1e-11,
        )


@pytest.mark.slow
def test_a_mask_of_positions_can_differ_by_prompt(exact):
    contrast = prompts()
    each = np.arange(6)[None] == np.array([[1], [2], [5]])
    got = path_patch(exact, contrast, [("a0.h1", each)], ("m1", each)).values[0]
    for row, pos in enumerate((1, 2, 5)):
        alone = path_patch(exact, contrast.rows(slice(row, row + 1)), [("a0.h1", pos)], ("m1", pos)).values
        np.testing.assert_allclose(got[row], alone[0, 0], rtol=0, atol=1e-12)


@pytest.mark.slow
def test_half_precision_stays_near_the_exact_paths(exact):
    contrast = prompts()
    half = path_patch(peaky(CONFIG, dtype=jnp.bfloat16), contrast, HEADS[:4], "logits")
    assert half.values.dtype == np.float32
    assert np.abs(half.values - path_patch(exact, contrast, HEADS[:4], "logits").values).max() < 0.3


def test_a_head_of_a_model_with_grouped_heads_has_no_keys_of_its_own(exact):
    contrast = prompts()
    with pytest.raises(UserError, match="share each key/value head"):
        path_patch(exact, contrast, ["a0.h0"], "a2.h1")
    model = peaky(dataclasses.replace(GPT2_LIKE, n_layers=2), dtype=jnp.float64)
    whole = path_patch(model, contrast, ["a0.h0"], "a1.h1").values
    parts = path_patch(model, contrast, ["a0.h0"], [f"a1.h1<{part}>" for part in "qkv"]).values
    np.testing.assert_array_equal(whole, parts)


@pytest.mark.parametrize(
    ("senders", "receivers", "message"),
    [
        (["a3.h0"], "logits", "no such part"),
        (["a0.h4"], "logits", "no such part"),
        (["m3"], "logits", "no such part"),
        (["logits"], "m1", "no such part"),
        (["a0.h0<q>"], "m1", "a whole head"),
        (["a0.h0"], "input", "no such part"),
        (["a0.h0"], "a2.h2<k>", "no such part"),  # two key/value heads
        (["a0.h0"], ["m1", "logits"], "see the whole stream"),
        (["a0.h0"], [], "no receivers"),
        ([], "m1", "no senders"),
        ("a0.h0", "m1", "a list of senders"),
        ([("a0.h0", 6)], "m1", "positions -6 to 5"),
        ([("a0.h0", 1.5)], "m1", "positions -6 to 5"),
        ([("a0.h0", slice(0, 4, 2))], "m1", "step"),
        ([("a0.h0", np.ones(5, bool))], "m1", "mask of positions"),
        ([3], "m1", "no part of a model"),
    ],
)
def test_what_does_not_exist_is_refused_by_name(exact, senders, receivers, message):
    with pytest.raises(UserError, match=message):
        path_patch(exact, prompts(), senders, receivers)


def test_a_model_without_separate_inputs_is_refused():
    with pytest.raises(UserError, match="separate inputs"):
        shape_of(toy(), prompts())
