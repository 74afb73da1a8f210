"""`read` and `edit`: the numbered promises of the design, over scanned, unrolled and mixed layouts."""

from __future__ import annotations

import dataclasses
import functools

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jax_interp.core.pytrees import register_dataclass
from jax_interp.surgery import (
    Activations,
    Add,
    AddressError,
    Clamp,
    Each,
    EditError,
    Replace,
    Scale,
    Splice,
    Zero,
    at,
    edit,
    read,
    replan,
    restore,
    sites,
)
from tests.surgery.conftest import CONFIG, DEPTH

call = jax.jit(lambda f, *args: f(*args))
trace = jax.eval_shape  # errors are raised while a model is traced: nothing needs to run


@pytest.fixture(scope="module")
def vector():
    return jax.random.normal(jax.random.key(2), (CONFIG.d_model,))


def same_bits(a, b):
    chex.assert_trees_all_equal(a, b)


# ---- 1. no silent miss -------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "wrong", ["blocks.*.resid_pots", "resid_post", "blocks.1.attn.patern", "logit", "blocks.0.mlp"]
)
def test_an_address_that_names_nothing_says_what_exists(model, tokens, wrong):
    nearest = {"blocks.*.resid_pots": "blocks.*.resid_post", "resid_post": "blocks.*.resid_post", "logit": "logits",
               "blocks.1.attn.patern": "blocks.*.attn.pattern", "blocks.0.mlp": "blocks.*.mlp_out"}[wrong]  # fmt: skip
    for surgery in (read(model, wrong), edit(model, at(wrong, Zero()))):
        with pytest.raises(AddressError) as caught:
            trace(surgery, tokens)
        message = str(caught.value)
        assert wrong in message
        assert nearest in message
        assert "sites(model)" in message


def test_one_value_is_read_once_in_a_nest(model, tokens):
    with pytest.raises(AddressError, match="read twice"):
        trace(read(read(model, "embed"), "hook_embed"), tokens)


def test_an_edit_that_nothing_depends_on_is_refused(model, tokens):
    late = edit(model, at("blocks.3.mlp_out", Zero()))
    with pytest.raises(AddressError, match="nothing depends on it"):
        trace(read(late, "blocks.1.resid_post", output=False), tokens)
    with pytest.raises(AddressError, match="nothing depends on it"):
        trace(read(edit(model, at("logits", Zero())), "blocks.1.resid_post", output=False), tokens)
    # the same value, edited after it was read
    with pytest.raises(AddressError, match="nothing depends on it"):
        trace(edit(read(model, "blocks.1.resid_post", output=False), at("blocks.1.resid_post", Zero())), tokens)
    trace(read(late, "blocks.3.resid_post", output=False), tokens)
    # an edit of more blocks than are run
    for address, layer, advice in (
        ("blocks.*.attn.z", None, "edit no block after block 2, or"),
        ("blocks.attn.z", 1, ""),
    ):
        every = edit(model, at(address, Zero(), layer=layer))
        with pytest.raises(AddressError, match=rf"includes block 3.*no block is run after block 2.*: {advice} ?leave"):
            trace(read(every, "blocks.2.attn.q", output=False), tokens)
    trace(read(edit(model, at("blocks.1.resid_post", Zero())), "blocks.1.resid_post", output=False), tokens)


def test_an_edit_of_another_shape_is_refused(model, tokens):
    with pytest.raises(EditError, match=r"returned shape \(12, 64\), the value there has \(3, 12, 64\)"):
        trace(edit(model, at("blocks.1.mlp_out", lambda x: x[0])), tokens)
    says = r"Add cannot act on the value at 'blocks.1.mlp_out', float32\[3, 12, 64\] .*: its arrays are vector \[7\]; "
    with pytest.raises(EditError, match=says):
        trace(edit(model, at("blocks.1.mlp_out", Add(jnp.ones(7)))), tokens)


def test_a_plain_function_is_an_edit_whose_code_is_structure(model, tokens):
    call = jax.jit(lambda f, *args: f(*args))  # of its own: compiles are counted
    double = lambda x: x + x
    expected = call(edit(model, at("blocks.1.mlp_out", Scale(2.0))), tokens)
    for fn in (double, jax.jit(double), functools.partial(jnp.add, jnp.ones(())), jax.nn.relu):
        before = call._cache_size()
        got = [call(edit(model, at("blocks.1.mlp_out", fn)), tokens) for _ in range(2)]
        assert call._cache_size() == before + 1, "the same function compiles once"
        if fn is double:
            same_bits(got[0], expected)
    call(edit(model, at("blocks.*.mlp_out", Each(double))), tokens)

    class Unregistered:
        def __call__(self, x):
            return x

    with pytest.raises(TypeError, match=r"Unregistered is no pytree.*register_dataclass"):
        at("blocks.1.mlp_out", Unregistered())


def test_layers_must_be_said(model, tokens):
    with pytest.raises(AddressError, match="does not say which layers"):
        trace(read(model, "blocks.resid_post"), tokens)
    with pytest.raises(AddressError, match="give layer="):
        trace(edit(model, at("blocks.resid_post", Zero())), tokens)
    with pytest.raises(AddressError, match="leaves the layer open"):
        trace(edit(model, at("blocks.2.resid_post", Zero(), layer=1)), tokens)


def test_each_needs_one_entry_for_each_layer(model, tokens):
    with pytest.raises(AddressError, match="leading axis of 6 layers"):
        trace(edit(model, at("blocks.*.resid_post", Each(Add(jnp.ones((5, CONFIG.d_model)))))), tokens)
    with pytest.raises(AddressError, match="outside the blocks"):
        trace(edit(model, at("embed", Each(Add(jnp.ones((5, CONFIG.d_model)))))), tokens)


def test_what_is_no_edit_is_refused(model):
    with pytest.raises(TypeError, match=r"write Zero\(\)"):
        at("embed", Zero)
    with pytest.raises(TypeError, match="made by at"):
        edit(model, Zero())
    with pytest.raises(TypeError, match="callable pytree"):
        at("embed", 3.0)


# ---- 2. order ----------------------------------------------------------------------------------------------


def test_reading_outside_an_edit_sees_it_and_inside_does_not(model, tokens, vector):
    change = at("blocks.2.resid_post", Add(vector))
    clean = call(read(model, "blocks.2.resid_post"), tokens)[1]["blocks.2.resid_post"]
    seen = call(read(edit(model, change), "blocks.2.resid_post"), tokens)[1]["blocks.2.resid_post"]
    unseen = call(edit(read(model, "blocks.2.resid_post"), change), tokens)[1]["blocks.2.resid_post"]
    same_bits(unseen, clean)
    same_bits(seen, clean + vector[None, None])


def test_edits_at_one_value_act_innermost_first(model, tokens, vector):
    add, double = at("blocks.2.resid_post", Add(vector)), at("blocks.2.resid_post", Scale(2.0))
    clean = call(read(model, "blocks.2.resid_post"), tokens)[1]["blocks.2.resid_post"]
    for surgery in (edit(model, add, double), edit(edit(model, add), double)):
        got = call(read(surgery, "blocks.2.resid_post"), tokens)[1]["blocks.2.resid_post"]
        same_bits(got, (clean + vector[None, None]) * 2)


def test_a_nest_of_readings_comes_back_in_one_mapping(model, tokens):
    logits, acts = call(read(read(model, "embed"), "blocks.1.attn.z"), tokens)
    assert set(acts) == {"embed", "blocks.1.attn.z"}
    same_bits(logits, call(model, tokens))


# ---- 6. what is equal --------------------------------------------------------------------------------------

READS = ("embed", "blocks.*.resid_post", "blocks.3.attn.z", "blocks.1:4.mlp.post", "blocks.-1.attn.pattern", "logits",
         "blocks.2.ln1.scale", "ln_final.normalized")  # fmt: skip


def edits(vector):
    return (
        at("embed", Zero(), pos=2),
        at("blocks.1.attn.z", Zero(), head=2, pos=[3, -1]),
        at("blocks.3.resid_post", Add(vector, 0.5)),
        at("blocks.*.attn_out", Each(Scale(jnp.linspace(0.5, 1.0, DEPTH)))),
        at("blocks.1:4.mlp_out", Each(Add(jnp.linspace(0.0, 1.0, 3 * CONFIG.d_model).reshape(3, -1)))),
        at("blocks.resid_mid", Add(vector), layer=4),
        at("blocks.2.attn.pattern", Zero(), pos=slice(2, 5)),
    )


def test_layouts_give_the_same_bits(base, tokens, vector):
    outputs = []
    for layout in ((), "*", ["1:3", -1]):
        model = replan(base, layout)
        outputs.append((call(model, tokens), call(read(edit(model, *edits(vector)), *READS), tokens)))
    same_bits(outputs[0], outputs[1])
    same_bits(outputs[0], outputs[2])


def test_reading_everything_leaves_the_output_bitwise_equal(model, tokens):
    everything = list(sites(model)(tokens))
    logits, acts = call(read(model, everything), tokens)
    same_bits(logits, call(model, tokens))
    assert list(acts) == sorted(everything)
    for address, kind in sites(model)(tokens).items():
        assert acts[address].shape == kind.shape
        assert acts[address].dtype == kind.dtype


def test_patching_back_what_was_read_changes_no_bit(model, tokens):
    logits, acts = call(read(model, *READS), tokens)
    same_bits(call(edit(model, *restore(acts)), tokens), logits)


def test_a_patched_run_takes_over_the_donor_from_there_on(model, tokens):
    other = tokens[:, ::-1]
    donor, acts = call(read(model, "blocks.3.resid_post"), other)
    same_bits(call(edit(model, at("blocks.3.resid_post", Replace(acts["blocks.3.resid_post"]))), tokens), donor)


def test_one_layer_edited_as_structure_as_data_and_by_mask_is_the_same(model, tokens, vector):
    expected = call(edit(model, at("blocks.2.resid_post", Add(vector))), tokens)
    for layer in (2, jnp.int32(2), 2 - DEPTH, [2], np.arange(DEPTH) == 2):
        same_bits(call(edit(model, at("blocks.resid_post", Add(vector), layer=layer)), tokens), expected)
    each = jnp.zeros((DEPTH, CONFIG.d_model)).at[2].set(vector)
    chex.assert_trees_all_close(call(edit(model, at("blocks.*.resid_post", Each(Add(each)))), tokens), expected)


# ---- 5. pay for what you ask -------------------------------------------------------------------------------


def test_without_the_output_only_what_was_read_comes_back(model, tokens):
    acts = call(read(model, "blocks.2.resid_post", "embed", output=False), tokens)
    full = call(read(model, "blocks.2.resid_post", "embed"), tokens)[1]
    assert isinstance(acts, Activations)
    same_bits(dict(acts), dict(full))
    # a value after the blocks needs all of them
    last = call(read(model, "ln_final.normalized", "blocks.0.resid_pre", output=False), tokens)
    same_bits(last["ln_final.normalized"], call(read(model, "ln_final.normalized"), tokens)[1]["ln_final.normalized"])


# ---- a dictionary in place of a value ----------------------------------------------------------------------


@register_dataclass
@dataclasses.dataclass(frozen=True)
class Relu:
    weight: jax.Array

    def encode(self, x):
        return jax.nn.relu(x @ self.weight)

    def decode(self, latents):
        return latents @ self.weight.T


@pytest.fixture(scope="module")
def dictionary():
    return Relu(weight=jax.random.normal(jax.random.key(5), (CONFIG.d_model, 40)) / 8)


def test_the_latents_of_a_splice_are_a_value_of_their_own(model, tokens, dictionary):
    x = call(read(model, "blocks.2.resid_post"), tokens)[1]["blocks.2.resid_post"]
    spliced = edit(model, at("blocks.2.resid_post", Splice(dictionary)))
    latents = "blocks.2.resid_post.latents"
    _, acts = call(read(spliced, latents, "blocks.2.resid_post"), tokens)
    chex.assert_trees_all_close(acts[latents], dictionary.encode(x), rtol=1e-5, atol=1e-5)
    clamped = edit(spliced, at(latents, Clamp(3.0, 3.0), feature=7, pos=slice(4, None)))
    _, acts = call(read(clamped, latents, "blocks.2.resid_post"), tokens)
    expected = np.array(dictionary.encode(x))
    expected[:, 4:, 7] = 3.0
    chex.assert_trees_all_close(acts[latents], expected, rtol=1e-5, atol=1e-5)
    chex.assert_trees_all_close(acts["blocks.2.resid_post"], dictionary.decode(expected), rtol=1e-5, atol=1e-4)
    with pytest.raises(AddressError, match="exists in blocks 2 and not in 3"):
        trace(read(spliced, "blocks.3.resid_post.latents"), tokens)
    with pytest.raises(AddressError):  # inside the splice there are no latents yet
        trace(edit(read(model, latents), at("blocks.2.resid_post", Splice(dictionary))), tokens)


def test_a_splice_with_its_error_changes_nothing_until_a_latent_is_edited(model, tokens, dictionary):
    spliced = edit(model, at("blocks.2.resid_post", Splice(dictionary, error=True)))
    same_bits(call(spliced, tokens), call(model, tokens))
    ablated = edit(spliced, at("blocks.2.resid_post.latents", Zero(), feature=7))
    x = call(read(model, "blocks.2.resid_post"), tokens)[1]["blocks.2.resid_post"]
    got = call(read(ablated, "blocks.2.resid_post"), tokens)[1]["blocks.2.resid_post"]
    expected = x - dictionary.encode(x)[..., 7:8] * dictionary.weight[:, 7][None, None]
    chex.assert_trees_all_close(got, expected, rtol=1e-4, atol=1e-4)


def test_the_error_of_a_splice_is_a_constant_to_gradients(model, tokens, dictionary):
    x = jnp.ones((1, 2, CONFIG.d_model))

    def value(error):
        class Root:  # the smallest model there is: one named value
            def __call__(self, x, taps=()):
                from jax_interp.surgery import Site

                site = Site.open(taps)
                return site.close(site("x", x))

        return lambda x: jnp.sum(edit(Root(), at("x", Splice(dictionary, error=error)))(x) ** 2 / 2)

    (with_error, without) = (jax.vjp(lambda x, e=e: jax.grad(value(e))(x), x)[0] for e in (True, False))
    residual = x - dictionary.decode(dictionary.encode(x))
    jacobian = jax.jacobian(lambda x: dictionary.decode(dictionary.encode(x)))(x)
    chex.assert_trees_all_close(
        with_error - without, jnp.einsum("abcdef,abc->def", jacobian, residual), rtol=1e-4, atol=1e-4
    )


def test_a_dictionary_for_each_layer(model, tokens, dictionary):
    many = Relu(weight=jnp.stack([dictionary.weight * (1 + i / 10) for i in range(DEPTH)]))
    spliced = edit(model, at("blocks.*.mlp_out", Each(Splice(many))))
    _, acts = call(read(spliced, "blocks.*.mlp_out.latents", "blocks.3.mlp_out"), tokens)
    assert acts["blocks.*.mlp_out.latents"].shape == (DEPTH, 3, 12, 40)
    chex.assert_trees_all_close(
        acts["blocks.3.mlp_out.latents"] @ many.weight[3].T, acts["blocks.3.mlp_out"], rtol=1e-4, atol=1e-4
    )


# ---- activations -------------------------------------------------------------------------------------------


def test_activations_are_found_under_any_spelling(model, tokens):
    _, acts = call(read(model, "blocks.*.resid_post", "blocks.4.attn.z", "blocks.1.attn.z"), tokens)
    rows = acts["blocks.*.resid_post"]
    assert rows.shape[0] == DEPTH
    assert len(acts) == 3
    same_bits(acts["blocks.-1.hook_resid_post"], rows[-1])
    same_bits(acts["blocks.1:3.resid_post"], rows[1:3])
    same_bits(acts.stack("attn.z"), jnp.stack([acts["blocks.1.attn.z"], acts["blocks.4.attn.z"]]))
    same_bits(acts.stack("resid_post"), rows)
    assert acts.layers("attn.z") == (1, 4)
    assert "blocks.2.resid_post" in acts
    assert "blocks.2.attn.z" not in acts
    with pytest.raises(AddressError, match="was not read"):
        acts["blocks.2.attn.z"]
    with pytest.raises(AddressError, match="was read at no layer"):
        acts.stack("mlp_out")


def test_what_was_not_read_has_a_default(model, tokens):
    acts = call(read(model, "blocks.1.resid_post", output=False), tokens)
    assert acts.get("blocks.0.resid_post") is None
    assert acts.get("embed", 3) == 3
    chex.assert_trees_all_equal(acts.get("blocks.1.hook_resid_post"), acts["blocks.1.resid_post"])


def test_sites_lists_every_name_in_the_order_of_the_forward_pass(model, tokens):
    names = list(sites(model)(tokens))
    assert names[0] == "embed"
    assert names[-1] == "logits"
    block = [name.removeprefix("blocks.1.") for name in names if name.startswith("blocks.1.")]
    assert block == [
        "resid_pre", "attn_in", "q_input", "k_input", "v_input", "ln1.scale", "ln1.normalized",
        "attn.q", "attn.k", "attn.v", "attn.rot_q", "attn.rot_k",
        "attn.attn_scores", "attn.pattern", "attn.z", "attn.result", "attn_out", "resid_mid", "mlp_in",
        "ln2.scale", "ln2.normalized", "mlp.pre", "mlp.pre_linear", "mlp.post", "mlp_out", "resid_post",
    ]  # fmt: skip
    assert names.index("blocks.2.resid_pre") == names.index("blocks.1.resid_post") + 1
