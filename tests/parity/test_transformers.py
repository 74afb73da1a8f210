"""Our numbers are those of `transformers`: logits, every value that it returns, gradients, and files both ways.

Each reference is built with random weights, scaled until attention is peaky, and written by `save_pretrained`.
"""

from __future__ import annotations

import copy

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from family_cases import REFERENCES, family_of_case, reference

from jax_interp.models import generate, load, save
from jax_interp.models.hf.attributes import Attributes
from jax_interp.models.hf.fill import parameters
from jax_interp.surgery import read

pytestmark = pytest.mark.parity
torch = pytest.importorskip("torch", reason="parity needs torch and transformers: `make parity`")
transformers = pytest.importorskip("transformers", reason="parity needs torch and transformers: `make parity`")

ATOL = 5e-5


@pytest.fixture(scope="module", params=REFERENCES)
def pair(request, tmp_path_factory):
    """A model of transformers and ours from its files."""
    theirs = reference(request.param)
    directory = tmp_path_factory.mktemp("reference")
    theirs.save_pretrained(directory)
    model, _ = load(directory)
    return theirs, model


@pytest.mark.parametrize("case", REFERENCES)
def test_our_defaults_are_theirs(case):
    """What a `config.json` leaves out means what it means to them."""
    architecture, values = REFERENCES[case]
    family = family_of_case(case)
    whole = getattr(transformers, architecture).config_class(**values).to_dict()
    assert family.read(Attributes(values, case)) == family.read(Attributes(whole, case))


@pytest.fixture(scope="module")
def call():
    return jax.jit(lambda model, *args, **kwargs: model(*args, **kwargs))


def batch(seed=0, shape=(3, 17)):
    return np.random.default_rng(seed).integers(0, 101, shape)


def test_logits_and_every_value_that_is_returned(pair, call):
    reference, model = pair
    tokens = batch()
    with torch.no_grad():
        theirs = reference(torch.tensor(tokens), output_hidden_states=True, output_attentions=True)
    names = ("blocks.0.resid_pre", "blocks.*.resid_post", "blocks.*.attn.pattern")
    logits, acts = call(read(model, *names), jnp.asarray(tokens))
    np.testing.assert_allclose(logits, theirs.logits.numpy(), atol=ATOL)
    hidden = [acts["blocks.0.resid_pre"], *acts["blocks.*.resid_post"]]
    for i, ours in enumerate(hidden[:-1]):  # the last of theirs is after the final norm
        np.testing.assert_allclose(ours, theirs.hidden_states[i].numpy(), atol=ATOL)
    normed = model.ln_final(hidden[-1], _Nothing())
    np.testing.assert_allclose(normed, theirs.hidden_states[-1].numpy(), atol=ATOL)
    for ours, attention in zip(acts["blocks.*.attn.pattern"], theirs.attentions, strict=True):
        np.testing.assert_allclose(ours, attention.numpy(), atol=ATOL)
    peak = np.mean([attention.numpy().max(-1).mean() for attention in theirs.attentions])
    assert peak > 0.3  # uniform attention would hide errors


@pytest.mark.parametrize("side", ["left", "right"])
def test_padded_rows(pair, call, side):
    reference, model = pair
    tokens, mask = batch(1), np.ones((3, 17), bool)
    for row, n in enumerate((0, 5, 11)):
        mask[row, slice(0, n) if side == "left" else slice(17 - n, 17)] = False
    positions = np.maximum(np.cumsum(mask, 1) - 1, 0)
    with torch.no_grad():
        theirs = reference(
            torch.tensor(tokens), attention_mask=torch.tensor(mask).long(), position_ids=torch.tensor(positions)
        ).logits.numpy()
    ours = call(model, jnp.asarray(tokens), mask=jnp.asarray(mask))
    np.testing.assert_allclose(ours[mask], theirs[mask], atol=ATOL)


def test_gradients_of_the_loss(pair, tmp_path_factory):
    reference, model = copy.deepcopy(pair[0]), pair[1]
    tokens = batch(2)

    def loss(model, tokens):
        logp = jax.nn.log_softmax(model(tokens)[:, :-1])
        return -jnp.mean(jnp.take_along_axis(logp, tokens[:, 1:, None], axis=-1))

    value, gradient = jax.jit(jax.value_and_grad(loss))(model, jnp.asarray(tokens))
    theirs = reference(torch.tensor(tokens), labels=torch.tensor(tokens)).loss
    theirs.backward()
    np.testing.assert_allclose(value, theirs.item(), rtol=1e-5)
    # in memory as on disk, but for Mixtral's experts, which it fuses when it loads them
    for p in reference.parameters():
        p.data = p.grad if p.grad is not None else torch.zeros_like(p)
    directory = tmp_path_factory.mktemp("gradient")
    reference.save_pretrained(directory)
    expected, _ = load(directory)
    for p, leaf, part in zip(parameters(model), jax.tree.leaves(gradient), jax.tree.leaves(expected), strict=True):
        ours, part = np.asarray(leaf), np.asarray(part)
        if p.name.endswith("attn.k.bias") and model.config.positions == "learned":
            assert max(np.abs(ours).max(), np.abs(part).max()) < 1e-6  # zero in exact arithmetic: noise on both sides
            continue
        assert np.linalg.norm(ours - part) <= 1e-4 * np.linalg.norm(part), p.name


@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float16"])
def test_what_we_save_they_load_to_identical_logits(pair, tmp_path, dtype):
    reference, model = pair
    model, family = jax.tree.map(lambda leaf: leaf.astype(dtype), model), reference.config.model_type
    directory = save(model, tmp_path / "ours", family=family, max_file_bytes=50_000)
    back = transformers.AutoModelForCausalLM.from_pretrained(directory, attn_implementation="eager")
    assert back.dtype == getattr(torch, dtype)
    reference.save_pretrained(tmp_path / "theirs")
    again = transformers.AutoModelForCausalLM.from_pretrained(
        tmp_path / "theirs", dtype=back.dtype, attn_implementation="eager"
    )
    tokens = torch.tensor(batch(3))
    with torch.no_grad():
        assert torch.equal(back(tokens).logits, again(tokens).logits)


def test_bfloat16_is_as_near_as_theirs(pair, call, tmp_path):
    """2 %, or as much as they lose themselves of weights like these."""
    reference, model = pair
    tokens = batch(4)
    reference.save_pretrained(tmp_path)
    rounded = transformers.AutoModelForCausalLM.from_pretrained(
        tmp_path, dtype=torch.bfloat16, attn_implementation="eager"
    )
    with torch.no_grad():
        exact, theirs = (m(torch.tensor(tokens)).logits.float().numpy() for m in (reference, rounded))
    ours = call(jax.tree.map(lambda leaf: leaf.astype(jnp.bfloat16), model), jnp.asarray(tokens)).astype(jnp.float32)
    error, bound = (np.linalg.norm(x - exact) / np.linalg.norm(exact) for x in (ours, theirs))
    assert error < max(2e-2, 1.2 * bound)


def test_greedy_generation(pair):
    reference, model = pair
    tokens = batch(5, (3, 7))
    with torch.no_grad():
        theirs = reference.generate(  # without a mask it would take one from the ids
            torch.tensor(tokens),
            attention_mask=torch.ones(tokens.shape),
            max_new_tokens=12,
            do_sample=False,
            eos_token_id=None,
            pad_token_id=0,
        )
    np.testing.assert_array_equal(generate(model, jnp.asarray(tokens), 12), theirs.numpy()[:, 7:])


class _Nothing:
    """A scope that names nothing, for a layer called by itself."""

    def __truediv__(self, name):
        return self

    def __call__(self, name, x, axes=""):
        return x
