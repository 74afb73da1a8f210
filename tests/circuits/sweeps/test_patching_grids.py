"""Every cell of a grid is a run with one value replaced, on the fast path and on the general one."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from toy import toy

from jax_interp.circuits import LogitDifference, make_contrast
from jax_interp.circuits.sweeps import EVERY, GRIDS, Grid, interventions, patch, patch_every
from jax_interp.core.errors import UserError
from jax_interp.models import Config, init
from jax_interp.surgery import AddressError, Replace, at, call, edit, read, replan

CONFIG = Config(n_layers=3, d_model=16, n_heads=4, n_kv_heads=2, d_mlp=24, vocab_size=40, n_ctx=16)
MODEL = init(CONFIG, jax.random.key(0))
CLEAN, CORRUPTED = (jax.random.randint(jax.random.key(i), (2, 6), 0, 40) for i in (1, 2))
SAME_START = CORRUPTED.at[:, :2].set(CLEAN[:, :2])
MASK = jnp.ones((2, 6), bool).at[1, :2].set(False)
METRIC = LogitDifference(jnp.asarray([3, 4]), 7)
CONTRAST = make_contrast(CLEAN, SAME_START, METRIC)
PADDED = make_contrast(CLEAN, SAME_START, METRIC, mask=MASK)


def by_hand(model, contrast, grid, cell, direction="denoise"):
    """One cell, by an edit at a written address: no resumption, no cache."""
    source, target = contrast.runs(direction)
    address, inputs = f"blocks.{cell['layer']}.{grid.name}", {"mask": contrast.mask}
    value = call(read(model, address, output=False), source, **inputs)[address]
    pos = cell.get("pos", cell.get("dest"))
    where = None if pos is None else jnp.arange(source.shape[1])[None] == pos
    one = at(address, Replace(value), head=cell.get("head"), feature=cell.get("src"), where=where)
    return METRIC(call(edit(model, one), target, **inputs))


@pytest.mark.parametrize("name", ["resid_mid", "head_k_by_pos", "pattern_by_dest_src", "head_out"])
@pytest.mark.parametrize("contrast", [CONTRAST, PADDED], ids=["whole", "padded"])
def test_a_cell_is_a_run_with_one_value_replaced(name, contrast, monkeypatch):
    monkeypatch.setattr(interventions, "_WORTH_A_PROGRAM", 1)  # bands of positions, also where they do not pay
    grid, found = GRIDS[name], patch(MODEL, contrast, name).values
    for numbers in [(0,) * len(grid.axes), (1, 1, 2, 1)[: len(grid.axes)], (2, 0, 4, 3)[: len(grid.axes)]]:
        cell = dict(zip(grid.axes, numbers))
        cell = {axis: i % len(found.axes[axis]) for axis, i in cell.items()}
        np.testing.assert_allclose(found.sel(**cell).values, by_hand(MODEL, contrast, grid, cell), atol=2e-6)


@pytest.mark.parametrize("layout", [(), "*", "1:2"], ids=["scanned", "unrolled", "mixed"])
def test_layouts_metrics_and_edited_models_give_the_same_numbers(layout):
    model = replan(MODEL, layout)
    whole = make_contrast(CLEAN, SAME_START, lambda logits: METRIC(logits[:, -1:]))  # reads all logits
    fast, slow = patch(model, CONTRAST, "attn_out"), patch(edit(model), whole, "attn_out")
    assert fast.values.shape == (3, 6, 2)
    np.testing.assert_allclose(fast.values, slow.values, atol=2e-6)


def test_noise_is_denoise_with_the_prompts_exchanged():
    exchanged = make_contrast(CONTRAST.corrupted, CONTRAST.clean, METRIC)
    noise, denoise = patch(MODEL, CONTRAST, "resid_pre", direction="noise"), patch(MODEL, exchanged, "resid_pre")
    np.testing.assert_allclose(noise.values, denoise.values, atol=1e-6)
    np.testing.assert_allclose(noise.normalised().values, 1 - denoise.normalised().values, atol=1e-4)


def test_the_last_residual_stream_carries_the_whole_answer():
    effects = patch(MODEL, CONTRAST, "resid_post", only={"layer": [-1]})
    np.testing.assert_allclose(effects.normalised().values[0], [0, 0, 0, 0, 0, 1], atol=1e-5)
    np.testing.assert_allclose(effects.values.values[0, -1], effects.clean, atol=1e-6)
    np.testing.assert_allclose(effects.values.values[0, 0], effects.corrupted, atol=1e-6)  # nothing was changed
    np.testing.assert_allclose(effects.standard_error().values[0], np.zeros(6), atol=1e-4)


def test_the_standard_error_is_that_of_a_ratio_of_means():
    effects = patch(MODEL, CONTRAST, "resid_pre", only={"layer": [1]})
    prompts = np.arange(2)
    ratio = lambda rows: (
        (effects.values.values[..., rows].mean(-1) - effects.corrupted[rows].mean())
        / (effects.clean[rows].mean() - effects.corrupted[rows].mean())
    )
    np.testing.assert_allclose(effects.normalised().values, ratio(prompts), atol=1e-5)
    left_out = np.stack([ratio(prompts != i) for i in prompts])
    error = np.sqrt(1 / 2 * ((left_out - left_out.mean(0)) ** 2).sum(0))
    np.testing.assert_allclose(effects.standard_error().values, error, rtol=1e-3, atol=1e-5)


def test_models_that_are_not_ours():
    model = toy(layers=2)
    found = patch(model, CONTRAST, "resid_post", only={"pos": [1, -1]})
    assert dict(found.values.axes)["pos"] == (1, 5)
    address = "blocks.1.resid_post"
    value = read(model, address, output=False)(CLEAN)[address]
    expected = METRIC(edit(model, at(address, Replace(value), pos=5))(SAME_START))
    np.testing.assert_allclose(found.values.sel(layer=1, pos=1).values, expected, atol=1e-6)


def test_a_value_outside_the_blocks_is_patched_too():
    embed = patch(MODEL, CONTRAST, Grid("embed", ("pos",)))
    first = patch(MODEL, CONTRAST, "resid_pre", only={"layer": [0]})
    np.testing.assert_allclose(embed.values, first.values.values[0], atol=1e-6)
    one = patch(MODEL, CONTRAST, Grid("blocks.1.mlp.post", ("feature",)))
    assert one.values.shape == (24, 2)


def test_the_every_variants_are_the_single_grids():
    found = patch_every(toy(layers=2), CONTRAST, ["resid_pre", Grid("resid_post", ("layer",))])
    assert list(found) == ["resid_pre", "blocks.*.resid_post"]
    assert found["blocks.*.resid_post"].values.shape == (2, 2)
    assert all(name in GRIDS for names in EVERY.values() for name in names)


@pytest.mark.parametrize(
    ("grid", "only", "error", "message"),
    [
        ("resid_perp", {}, UserError, "did you mean 'resid_pre'"),
        (Grid("attn.zz", ("layer",)), {}, AddressError, "attn.z"),
        (Grid("resid_pre", ("layer", "head")), {}, UserError, "cannot be cut along 'head'"),
        (Grid("resid_pre", ("layer", "heads")), {}, UserError, "not different ones of"),
        ("head_out", {"head": [4]}, UserError, "entries 0 to 3"),
        ("head_out", {"pos": [1]}, UserError, "the axes layer, head"),
    ],
)
def test_wrong_grids_are_refused(grid, only, error, message):
    with pytest.raises(error, match=message):
        patch(MODEL, CONTRAST, grid, only=only)
