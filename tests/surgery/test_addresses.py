"""Addresses: what they mean, the spellings accepted, and what is refused."""

from __future__ import annotations

import pytest

from jax_interp.surgery import Address, AddressError


@pytest.mark.parametrize(
    ("text", "canonical"),
    [
        ("embed", "embed"),
        ("hook_embed", "embed"),
        ("ln_final.hook_normalized", "ln_final.normalized"),
        ("blocks.3.attn.hook_z", "blocks.3.attn.z"),
        ("blocks.3.hook_resid_post", "blocks.3.resid_post"),
        ("blocks.3.ln1.hook_scale", "blocks.3.ln1.scale"),
        ("blocks.*.resid_post", "blocks.*.resid_post"),
        ("blocks.2:8.mlp.post", "blocks.2:8.mlp.post"),
        ("blocks.resid_post", "blocks.resid_post"),
    ],
)
def test_transformer_lens_spelling_is_the_same_address(text, canonical):
    assert str(Address.parse(text)) == canonical
    assert Address.parse(text) == Address.parse(canonical)


@pytest.mark.parametrize(
    ("layers", "expected"),
    [("7", (7,)), ("-1", (11,)), ("2:5", (2, 3, 4)), ("*", tuple(range(12))), (":3", (0, 1, 2)), ("-2:", (10, 11)),
     ("0:12:4", (0, 4, 8))],
)  # fmt: skip
def test_layers_follow_python_indexing(layers, expected):
    assert Address.parse(f"blocks.{layers}.resid_post").resolve(12) == expected


def test_a_layer_of_thousands_of_digits_is_refused_in_a_short_message():
    with pytest.raises(AddressError, match="nine characters") as error:
        Address.parse(f"blocks.{'1' * 5000}.resid_post").resolve(12)
    assert len(str(error.value)) < 200


def test_outside_the_blocks_there_are_no_layers():
    assert Address.parse("logits").resolve(12) is None


@pytest.mark.parametrize("text", ["blocks.12.resid_post", "blocks.-13.resid_post", "blocks.5:5.resid_post"])
def test_layers_that_do_not_exist_are_named(text):
    with pytest.raises(AddressError, match=r"names no layer: this model has blocks\.0 to blocks\.11"):
        Address.parse(text).resolve(12)


@pytest.mark.parametrize("text", ["", ".", "blocks", "blocks.3", "blocks..z", 3])
def test_what_cannot_be_an_address_is_refused(text):
    with pytest.raises(AddressError):
        Address.parse(text)


@pytest.mark.parametrize("layers", ["[0,2]", "0,2", "2-4", "-", "l*"])
def test_a_choice_of_layers_that_is_no_range_says_to_give_a_list(layers):
    with pytest.raises(AddressError, match=r"is no block.*a list of addresses"):
        Address.parse(f"blocks.{layers}.resid_post")


def test_only_one_value_has_no_layer_axis():
    assert Address.parse("blocks.-1.attn.z").is_single
    assert Address.parse("embed").is_single
    assert not Address.parse("blocks.2:3.attn.z").is_single
