"""What the readers of torch files refuse, and what the writers of dictionary_learning and sparsify refuse."""

from __future__ import annotations

import dataclasses
import json
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from jax_interp.core.errors import UserError
from jax_interp.core.torch_files import read_torch
from jax_interp.dictionaries import load_dictionary, save_dictionary
from jax_interp.dictionaries.activations import AbsTopK, BatchTopK, Gate, GroupMax, Jump, MatchingPursuit, ReLU, TopK
from jax_interp.dictionaries.formats import Files
from jax_interp.dictionaries.formats.folding import fold_input_scale, fold_input_shift, with_centre
from jax_interp.dictionaries.formats.sparsify import Sparsify
from jax_interp.dictionaries.forms import Dictionary
from tests.dictionaries.formats.published import Layout
from tests.dictionaries.formats.torch_layouts import LAYOUTS, D, M, runner_config
from tests.torch_archives import Object, save

pytestmark = pytest.mark.filterwarnings("ignore:.*(orientation|thresholds):")
Change = Callable[[Path], Any]


def written(name: str, directory: Path) -> Layout:
    return LAYOUTS[name](directory, np.random.default_rng(zlib.crc32(name.encode())))


def in_json(file: str, *groups: str, **entries: Any) -> Change:
    """Set entries of a JSON file. None removes one."""

    def change(folder: Path) -> None:
        path = folder / file
        content = inner = json.loads(path.read_text())
        for group in groups:
            inner = inner[group]
        inner.update(entries)
        for name in [name for name, value in entries.items() if value is None]:
            del inner[name]
        path.write_text(json.dumps(content))

    return change


def in_torch(file: str, **entries: Any) -> Change:
    """Set entries of a torch file, whose names have "__" for a dot. None removes one."""

    def change(folder: Path) -> None:
        content = read_torch(folder / file, keep_unknown=True)
        content |= {name.replace("__", "."): value for name, value in entries.items()}
        save(folder / file, {name: value for name, value in content.items() if value is not None})

    return change


def in_safe(file: str, **entries: np.ndarray) -> Change:
    def change(folder: Path) -> None:
        content = load_file(folder / file) | entries
        save_file(content, folder / file)

    return change


def moved(to: str) -> Change:
    return lambda folder: folder.rename(folder.parent / to)


def number(value: Any, dtype: Any = np.float32) -> np.ndarray:
    return np.asarray(value, dtype)


LEARNING, CROSS = "dictionary_learning ", "crosscoder_learning BatchTopK, "
FEW = np.where(np.eye(2, D) > 0, np.nan, 0).astype(np.float32)
ONES = np.ones(2, np.float32)
REFUSED: dict[str, tuple[str, Change, str]] = {
    "no threshold was set": (LEARNING + "BatchTopKSAE", in_torch("ae.pt", threshold=number(-1.0)), "never set"),
    "the same, nested": (LEARNING + "MatryoshkaBatchTopKSAE", in_torch("ae.pt", threshold=number(-1.0)), "never set"),
    "another class": (LEARNING + "AutoEncoder", in_json("config.json", "trainer", dict_class="Mine"), "Mine"),
    "the class of other tensors": (
        LEARNING + "AutoEncoder", in_json("config.json", "trainer", dict_class="AutoEncoderTopK", k=4), "'b_dec'",
    ),
    "another k": (LEARNING + "AutoEncoderTopK", in_json("config.json", "trainer", k=5), "k = 4, and.*k = 5"),
    "a k of 0": (LEARNING + "BatchTopKSAE", in_torch("ae.pt", k=number(0, np.int32)), "k = 0"),
    "another width": (
        LEARNING + "BatchTopKSAE", in_json("config.json", "trainer", dict_size=M + 1), "'encoder.weight' has shape",
    ),
    "another layer": (LEARNING + "BatchTopKSAE", in_json("config.json", "trainer", layer=4), "layer is 4"),
    "groups of another width": (
        LEARNING + "MatryoshkaBatchTopKSAE", in_torch("ae.pt", group_sizes=np.asarray([5, 14])), "add up to 19",
    ),
    "one of two classes": (
        LEARNING + "AutoEncoderTopK", lambda folder: (folder / "config.json").unlink(),
        "AutoEncoderTopK and BatchTopKSAE",
    ),
    "a module": (LEARNING + "AutoEncoder", in_torch("ae.pt", extra=Object("torch.nn.Linear", {})), "Linear"),
    "k and the width are not named": ("qwen-scope", moved("renamed"), "does not name it"),
    "another width is named": ("qwen-scope", moved("SAE-Res-Qwen3-8B-Base-W2K-L0_5"), "m = 2048"),
    "values after TopK without a ReLU": (
        "openai-gpt2 TopK, tied", in_torch("8.pt", activation_state_dict={"k": 4, "postact_fn": "Tanh"}), "Tanh",
    ),
    "another activation": ("openai-gpt2 ReLU", in_torch("7.pt", activation="Identity"), "Identity"),
    "more latents than there are": (
        "openai-gpt2 TopK, tied", in_torch("8.pt", activation_state_dict={"k": 99, "postact_fn": "ReLU"}), "k is 99",
    ),
    "two SAEs in a file": (
        "e2e-sae", in_torch("e2e_similar_ce_layer_6.pt", other__encoder__0__weight=np.ones((M, D), np.float32)),
        "SAEs of blocks-6-hook_resid_pre, other",
    ),
    "an object of another class": (
        "transcoder_circuits SAE", in_torch("sae.pt.pt", cfg=Object("os.environ", {"d_in": D})), "os.environ",
    ),
    "a transcoder or not": (
        "transcoder_circuits SAE", in_torch("sae.pt.pt", cfg=runner_config(is_transcoder=None)), "is None, not true",
    ),
    "a code for each layer": (CROSS + "no norm", in_torch("model.pt", code_normalization_id=number(5, int)), "DECOUP"),
    "an unknown norm": (CROSS + "no norm", in_torch("model.pt", code_normalization_id=number(6, int)), "id is 6"),
    "shares of a mixed norm": (CROSS + "no norm", in_torch("model.pt", code_normalization_id=number(3, int)), "MIXED"),
    "two norms": (CROSS + "mixed norm", in_json("config.json", code_normalization="SAE"), "SAE.*mixed"),
    "no threshold of a crosscoder": (CROSS + "no norm", in_torch("model.pt", threshold=number(-1.0)), "never set"),
    "a threshold without k": (CROSS + "no norm", in_torch("model.pt", k=None), "'k' and 'threshold'"),
    "statistics of a part": (
        CROSS + "no norm", in_torch("model.pt", activation_mean=FEW),
        "NaN",
    ),
    "scales of other statistics": (
        CROSS + "no norm", in_torch("model.pt", activation_global_scale=ONES), "keep_relative_variance",
    ),
    "a part of the layers": (CROSS + "mixed norm", in_json("config.json", encoder_layers=[0]), "a part of its layers"),
    "a BatchTopK without its threshold": (
        "bartbussmann batchtopk with a threshold", in_torch("sae.pt", threshold=None), "has no threshold",
    ),
    "a bias that is not used": (
        "bartbussmann topk, normalised inputs", in_torch("sae.pt", b_enc=np.ones(M, np.float32)), "b_enc is not zero",
    ),
    "an unknown sae_type": ("bartbussmann vanilla", in_json("config.json", sae_type="quantile"), "quantile"),
    "an unknown setting": ("sparsify topk, older config", in_json("cfg.json", temperature=2.0), "temperature"),
    "an unknown activation": ("sparsify topk, older config", in_json("cfg.json", activation="batchtopk"), "batchtopk"),
    "a setting of another type": ("sparsify topk, older config", in_json("cfg.json", transcode="yes"), "'yes'"),
    "no width": ("sparsify topk, older config", in_json("cfg.json", d_in=None), "'d_in' is None"),
    "another width than the tensors": ("sparsify topk, older config", in_json("cfg.json", d_in=D + 1), "d = 7"),
    "the expansion factor": ("sparsify topk, older config", in_json("cfg.json", num_latents=0), "m = 192"),
    "k of more": ("sparsify topk, older config", in_json("cfg.json", k=M + 1), "k is 21"),
    "groups that do not divide": ("sparsify groupmax, skip transcoder", in_json("cfg.json", k=3), "k=3 equal groups"),
    "a skip that is not stated": (
        "sparsify topk, older config", in_safe("sae.safetensors", W_skip=np.ones((D, D), np.float32)), "W_skip",
    ),
    "signs of groups": ("sparsify signed", in_json("cfg.json", activation="groupmax"), "'signed'"),
    "an unknown variant": ("gpt-circuits standard", in_json("sae.json", sae_variant="topk_staircase"), "staircase"),
    "no k for the layer": ("gpt-circuits topk", in_json("sae.json", top_k=[3]), "layer 1"),
}  # fmt: skip


@pytest.mark.parametrize("case", REFUSED)
def test_what_is_not_certain_is_refused_by_name(case, tmp_path):
    name, change, match = REFUSED[case]
    layout = written(name, tmp_path)
    folder = layout.path if layout.path.is_dir() else layout.path.parent
    after = change(folder)
    path = after if isinstance(after, Path) else folder
    path = path if layout.path.is_dir() else path / layout.path.name
    with pytest.raises(UserError, match=match):
        load_dictionary(path)


def test_a_folder_with_several_layers_asks_for_one(tmp_path):
    path = written("gpt-circuits standard", tmp_path).path
    with pytest.raises(UserError, match=r"sae\.0\.safetensors, sae\.1\.safetensors: give one of the files"):
        load_dictionary(path.parent)


def test_the_last_sae_of_gpt_circuits_reads_the_output_of_the_last_block(tmp_path):
    path = written("gpt-circuits standard", tmp_path).path
    in_json("sae.json", n_features=[8, 8, 8, 8, M])(path.parent)
    last = path.rename(path.with_name("sae.4.safetensors"))
    assert load_dictionary(last).address == "blocks.3.resid_post"


def test_tokens_that_training_left_out_are_noted(tmp_path):
    folder = written(LEARNING + "BatchTopKSAE", tmp_path).path
    in_json("config.json", "buffer", remove_bos=True)(folder)
    assert any("BOS" in note for note in load_dictionary(folder).notes)


@pytest.mark.parametrize(
    ("submodule", "model", "address"),
    [
        ("resid_post_layer_3", "google/gemma-2-2b", "blocks.3.resid_post"),
        ("attn_out_layer_3", "EleutherAI/pythia-70m", "blocks.3.attn_out"),
        ("mlp_out_layer3", "meta-llama/Llama-3.1-8B", "blocks.3.mlp_out"),
        ("mlp_out_layer_3", "google/gemma-2-2b", None),  # a norm follows the MLP
        ("something", "google/gemma-2-2b", "blocks.3.resid_post"),  # the name of the folder
    ],
)
def test_the_submodule_is_an_address(submodule, model, address, tmp_path):
    folder = written(LEARNING + "BatchTopKSAE", tmp_path).path
    in_json("config.json", "trainer", submodule_name=submodule, lm_name=model)(folder)
    saved = load_dictionary(folder)
    assert (saved.address, saved.model) == (address, model)
    assert address is not None or saved.notes


def test_a_malicious_dictionary_is_refused_with_what_it_asked_for(tmp_path):
    mark = tmp_path / "mark"
    folder = written(LEARNING + "AutoEncoder", tmp_path).path
    content = b"\x80\x02}X\x04\x00\x00\x00biascposix\nmkdir\n" + b"X" + len(str(mark)).to_bytes(4, "little")
    (folder / "ae.pt").write_bytes(content + str(mark).encode() + b"\x85Rs.")
    with pytest.raises(UserError, match=r"posix\.mkdir"):
        load_dictionary(folder)
    assert not mark.exists()


# --- folding


def dictionary_of(activation: Any, **settings: Any) -> Dictionary:
    keys = iter(jax.random.split(jax.random.key(1), 5))
    normal = lambda *shape: jax.random.normal(next(keys), shape)
    W_skip = normal(D, D) if settings.pop("skip", False) else None
    return Dictionary(normal(D, M), normal(M), normal(M, D), normal(D), activation, W_skip, **settings)


ACTIVATIONS = {
    "ReLU": ReLU(),
    "TopK": TopK(4),
    "BatchTopK": BatchTopK(4, threshold=jnp.asarray(0.7)),
    "Jump": Jump.of(jnp.linspace(0.1, 1, M)),
    "Gate": Gate(jnp.linspace(-0.5, 0.5, M), jnp.linspace(1, -1, M)),
    "GroupMax": GroupMax(5),
}


@pytest.mark.parametrize("name", ACTIVATIONS)
def test_a_centre_and_a_shift_are_folded_exactly(name):
    x = jax.random.normal(jax.random.key(2), (9, D)) * 2
    for centred in (True, False):
        dictionary = dictionary_of(ACTIVATIONS[name], skip=True, centred=centred)
        other = with_centre(dictionary, not centred)
        assert other.centred != centred
        np.testing.assert_allclose(other.encode(x), dictionary.encode(x), atol=1e-4)
        np.testing.assert_allclose(other(x), dictionary(x), atol=1e-4)
    shift, factor = jnp.linspace(-1, 1, D), jnp.linspace(0.5, 2, D)
    moved = fold_input_shift(dictionary, shift)
    np.testing.assert_allclose(moved(x), dictionary(x - shift[None, :]), atol=1e-4)
    scaled = fold_input_scale(dictionary, factor, 1 / factor)
    np.testing.assert_allclose(scaled.encode(x), dictionary.encode(x * factor[None, :]), atol=1e-4)
    np.testing.assert_allclose(scaled(x), dictionary(x * factor[None, :]) * factor[None, :], atol=1e-4)


def test_scales_of_the_models_are_folded_into_a_crosscoder(tmp_path):
    layout = written("ckkissane", tmp_path)
    with pytest.warns(UserWarning, match="two factors are not in the files"):  # without them, its numbers are wrong
        scaled = load_dictionary(layout.path).dictionary
    factors = jnp.repeat(jnp.asarray([0.5, 3.0]), D)
    raw = fold_input_scale(scaled, factors)
    x = jnp.asarray(layout.x, jnp.float32)
    np.testing.assert_allclose(raw(x / factors[None, :]) * factors[None, :], layout.outputs, atol=1e-4)


# --- writing


@pytest.mark.parametrize("format", ["dictionary_learning", "sparsify"])
@pytest.mark.parametrize("name", ACTIVATIONS)
def test_what_is_written_is_read_as_the_same_function(name, format, tmp_path):
    x = jax.random.normal(jax.random.key(2), (9, D)) * 2
    held = ("ReLU", "TopK", "BatchTopK", "Jump", "Gate") if format == "dictionary_learning" else ("TopK", "GroupMax")
    for centred in (True, False):
        dictionary = dictionary_of(ACTIVATIONS[name], centred=centred)
        labels = {"address": "blocks.2.resid_post", "model": "gpt2", "format": format}
        if name not in held:
            with pytest.raises(UserError, match="has no"):
                save_dictionary(tmp_path / "no", dictionary, **labels)
            continue
        folder = save_dictionary(tmp_path / f"{centred}", dictionary, **labels)
        again = load_dictionary(folder)
        assert again.format == format
        np.testing.assert_allclose(again.dictionary.encode(x), dictionary.encode(x), atol=1e-5)
        np.testing.assert_allclose(again.dictionary(x), dictionary(x), atol=1e-5)


def test_what_a_format_cannot_hold_is_refused(tmp_path):
    wide = dictionary_of(ReLU(), centred=False)
    cases = {
        "without a skip": dictionary_of(TopK(4), skip=True),
        "one value is read": dataclasses.replace(wide, W_dec=jnp.ones((M, D + 2)), b_dec=jnp.ones(D + 2)),
        "is read and written": dataclasses.replace(wide, write_sites=2),
        "no AbsTopK": dictionary_of(AbsTopK(4)),
        "no TopK that weighs": dictionary_of(TopK(4, weighted=True)),
        "no MatchingPursuit": dictionary_of(MatchingPursuit(4)),
    }
    labels = {"address": "blocks.2.resid_post", "model": "gpt2", "format": "dictionary_learning"}
    for match, dictionary in cases.items():
        with pytest.raises(UserError, match=match):
            save_dictionary(tmp_path / "no", dictionary, **labels)
    with pytest.raises(UserError, match="attn"):
        save_dictionary(tmp_path / "no", wide, **(labels | {"address": "blocks.2.attn.z"}))
    for match, dictionary in {
        "same width": cases["one value is read"],
        "crosscoders": cases["is read and written"],
    }.items():
        with pytest.raises(UserError, match=match):
            save_dictionary(tmp_path / "no", dictionary, format="sparsify")
    assert not (tmp_path / "no").exists()


def test_a_skip_survives_sparsify(tmp_path):
    dictionary = dictionary_of(TopK(4), skip=True, centred=False)
    folder = save_dictionary(tmp_path / "layers.1.mlp", dictionary, format="sparsify")
    x = jax.random.normal(jax.random.key(2), (9, D))
    np.testing.assert_allclose(Sparsify.read(Files.at(folder)).dictionary(x), dictionary(x), atol=1e-5)
