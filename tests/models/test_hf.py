"""Loading and saving: options, refusals and what their messages say. That files come back: test_families.py."""

from __future__ import annotations

import dataclasses
import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from safetensors.numpy import load_file, save_file
from small_models import CONFIGS, GPT2_LIKE, LLAMA_LIKE, peaky

from jax_interp.core.errors import UserError
from jax_interp.core.leaves import flatten
from jax_interp.core.norms import FrozenNorm
from jax_interp.models import init, load
from jax_interp.models import save as save_with_digests
from jax_interp.models.hf.attributes import OFF
from jax_interp.models.hf.checkpoint import StoredTensor
from jax_interp.models.hf.digests import DIGESTS
from jax_interp.models.hf.family import families
from jax_interp.models.sharding import rules
from jax_interp.surgery import Zero, at, edit, replan
from jax_interp.surgery.lora import LoRA
from jax_interp.surgery.select import replace, replace_each
from jax_interp.training.sharding import make_mesh, specs


def save(*arguments, **options):
    """A directory like one of another program: without the digests that notice what the tests below change."""
    directory = save_with_digests(*arguments, **options)
    (directory / DIGESTS).unlink()
    return directory


@pytest.fixture
def saved(tmp_path):
    return save(peaky(LLAMA_LIKE), tmp_path / "llama")


def rewrite(directory, **changes):
    config = json.loads((directory / "config.json").read_text())
    (directory / "config.json").write_text(json.dumps(config | changes))


def retensor(directory, change):
    tensors = load_file(directory / "model.safetensors")
    change(tensors)
    save_file(tensors, directory / "model.safetensors", metadata={"format": "pt"})


def assert_same_bits(one, other):
    one, other = flatten(one), flatten(other)
    assert list(one) == list(other)
    for name in one:
        np.testing.assert_array_equal(one[name], other[name])
        assert one[name].dtype == other[name].dtype


@pytest.mark.parametrize("name", CONFIGS)
def test_several_files_and_an_unrolled_model_change_nothing(tmp_path, name):
    model = peaky(CONFIGS[name])
    directory = save(model, tmp_path / "m", max_file_bytes=20_000)
    assert len(list(directory.glob("model-*.safetensors"))) > 2
    assert_same_bits(load(directory)[0], model)
    unrolled, _ = load(directory, stacked=False)
    assert len(unrolled.blocks) == 3
    assert_same_bits(load(save(unrolled, tmp_path / "again"))[0], model)


def test_dtype_and_first_layers(saved):
    model, _ = load(saved, dtype=jnp.bfloat16, first_n_layers=2)
    assert {leaf.dtype for leaf in jax.tree.leaves(model)} == {jnp.dtype(jnp.bfloat16)}
    assert model.config.n_layers == model.blocks[0].depth == 2
    whole = peaky(LLAMA_LIKE).blocks[0].block.mlp.up.weight[...]
    np.testing.assert_array_equal(model.blocks[0].block.mlp.up.weight[...], whole[:2].astype(jnp.bfloat16))
    with pytest.raises(UserError, match="first_n_layers=4: the model has 3"):
        load(saved, first_n_layers=4)


def test_a_revision_is_asked_of_the_hub_and_nothing_but_json_and_safetensors(saved, monkeypatch):
    asked = {}

    def snapshot_download(name, **options):
        asked.update(options, name=name)
        return str(saved)

    monkeypatch.setattr("huggingface_hub.snapshot_download", snapshot_download)
    model, _ = load("EleutherAI/pythia-70m", revision="step3000", local_files_only=True)
    assert_same_bits(model, peaky(LLAMA_LIKE))
    assert (asked["name"], asked["revision"]) == ("EleutherAI/pythia-70m", "step3000")
    assert asked["local_files_only"] is True
    assert all(pattern.endswith((".json", ".safetensors")) for pattern in asked["allow_patterns"])


def test_a_revision_that_is_not_there_is_named(monkeypatch):
    def snapshot_download(name, **options):
        raise OSError(f"Revision Not Found for url: {name} at {options['revision']}\nmore lines")

    monkeypatch.setattr("huggingface_hub.snapshot_download", snapshot_download)
    with pytest.raises(UserError, match=r"'gpt2' is not a directory.*Revision Not Found.*step7$"):
        load("gpt2", revision="step7")


@pytest.mark.parametrize("stacked", [True, False])
def test_first_layers_are_all_that_is_read(saved, monkeypatch, call, stacked):
    read = []
    original = StoredTensor.read
    monkeypatch.setattr(StoredTensor, "read", lambda self, window: read.append(self.name) or original(self, window))
    model, _ = load(saved, first_n_layers=1, stacked=stacked)
    assert not [name for name in read if "layers.1." in name or "layers.2." in name]
    assert len(read) == len(set(read)) == 9 + 3  # of a block; embedding, final norm, head
    whole = peaky(LLAMA_LIKE)
    first = replan(whole, "*")
    first.blocks, first.config = type(first.blocks)([first.blocks[0]]), model.config
    tokens = jnp.arange(8)[None]
    np.testing.assert_allclose(call(model, tokens), call(first, tokens), atol=1e-5)


def test_all_options_at_once_on_eight_devices(saved):
    mesh = make_mesh(data=2, fsdp=2, tensor=2)
    model, _ = load(saved, mesh=mesh, dtype=jnp.bfloat16, first_n_layers=2)
    want, _ = load(saved, dtype=jnp.bfloat16, first_n_layers=2)
    assert_same_bits(jax.device_get(model), jax.device_get(want))
    assert len(model.blocks[0].block.attn.q.weight[...].sharding.device_set) == 8


@pytest.mark.parametrize("explicit", [True, False])
def test_tensors_go_straight_to_their_shards(saved, explicit):
    mesh = make_mesh(data=2, fsdp=2, tensor=2, explicit=explicit)
    model, _ = load(saved, mesh=mesh)
    assert_same_bits(jax.device_get(model), jax.device_get(peaky(LLAMA_LIKE)))
    for address, spec in specs(model, rules(model.config)).items():
        sharding = flatten(model)[address].sharding
        assert sharding.is_equivalent_to(jax.sharding.NamedSharding(mesh, spec), flatten(model)[address].ndim)


def test_the_older_spelling_of_rope_is_understood(saved):
    config = json.loads((saved / "config.json").read_text())
    new = config.pop("rope_parameters")
    for key in ("rope_type", "type"):
        old = {key: new["rope_type"], **{k: v for k, v in new.items() if k not in ("rope_type", "rope_theta")}}
        (saved / "config.json").write_text(json.dumps(config | {"rope_theta": 1000.0, "rope_scaling": old}))
        assert load(saved)[0].config == LLAMA_LIKE


def test_a_head_that_is_tied_may_be_in_the_file_too_and_buffers_of_old_versions(tmp_path):
    directory = save(peaky(GPT2_LIKE), tmp_path / "m")

    def change(tensors):
        for name in list(tensors):  # as the hub's gpt2 has them: without the prefix, and with the causal mask
            tensors[name.removeprefix("transformer.")] = tensors.pop(name)
        tensors["lm_head.weight"] = tensors["wte.weight"]
        tensors["h.0.attn.bias"] = np.ones((1, 1, 24, 24), np.uint8)

    retensor(directory, change)
    assert_same_bits(load(directory)[0], peaky(GPT2_LIKE))


def test_a_tokenizer_comes_along(tmp_path, test_data):
    from jax_interp.data.tokenizer import load_tokenizer

    tokenizer = load_tokenizer(test_data / "tokenizers" / "gpt2")
    large = dataclasses.replace(GPT2_LIKE, vocab_size=tokenizer.vocab_size)
    directory = save(init(large, jax.random.key(0)), tmp_path / "m", tokenizer=tokenizer)
    _, back = load(directory)
    assert back.encode("def f(self):", bos=False) == tokenizer.encode("def f(self):", bos=False)
    assert json.loads((directory / "config.json").read_text())["bos_token_id"] == tokenizer.bos_id == 50256


def test_a_document_starts_with_the_token_that_the_config_names(saved):
    """Families differ: OPT starts with </s>, Phi-3 with <s> though it has <|endoftext|>, Gemma's <s> is a word."""
    from tokenizers import AddedToken, Tokenizer, models

    def made(*special: str) -> None:
        backend = Tokenizer(models.WordLevel({"<s>": 0, "word": 1}, unk_token="word"))
        backend.add_special_tokens([AddedToken(name, special=True) for name in special])
        backend.save(str(saved / "tokenizer.json"))

    named = lambda token: rewrite(saved, bos_token_id=token) or load(saved)[1].bos_id
    made("<|endoftext|>", "</s>")
    assert named(3) == 3
    assert named(None) == 2, "the guess"
    assert named(1) == 2, "no special token: the config's default, left as it was"
    made("<bos>")
    assert named(None) == 2
    made()
    assert named(None) is None


# ---- what is refused, and what the error says -----------------------------------------------------------------------


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"attention_multiplier": 0.5}, r"not understood.*attention_multiplier=0\.5"),
        ({"hidden_act": "quick_gelu"}, r"hidden_act='quick_gelu'; supported are 'silu'"),
        ({"rope_parameters": {"rope_type": "dynamic", "factor": 2.0}}, "'dynamic'"),
        ({"rope_parameters": {"rope_type": "linear", "factor": 2.0, "beta": 3}}, "beta=3"),
        ({"auto_map": {"AutoModel": "evil.Model"}}, "never run"),
        ({"hidden_size": None}, "has hidden_size=null, which needs a whole number"),
        ({"num_attention_heads": 5}, "not a multiple"),
    ],
)
def test_a_config_that_is_not_understood(saved, changes, message):
    rewrite(saved, **changes)
    with pytest.raises(UserError, match=message):
        load(saved)


@pytest.mark.parametrize(
    "changes",
    [
        {"hidden_size": "big"},
        {"hidden_size": [32]},
        {"hidden_size": 32.0},
        {"num_attention_heads": 0},
        {"num_hidden_layers": "3"},
        {"num_hidden_layers": 3.5},
        {"vocab_size": {}},
        {"intermediate_size": "wide"},
        {"rms_norm_eps": "small"},
        {"hidden_act": ["silu"]},
        {"tie_word_embeddings": "perhaps"},
        {"max_position_embeddings": "long"},
        {"rope_parameters": {"rope_theta": "high"}},
        {"rope_parameters": "default"},
        {"rope_parameters": {"rope_type": "linear", "factor": "two"}},
    ],
    ids=str,
)
def test_attributes_of_another_type(saved, changes):
    rewrite(saved, **changes)
    with pytest.raises(UserError, match=r"config\.json"):
        load(saved)


@pytest.mark.parametrize("value", [None, False, 0, "", [], {}, 0.0, True, 1], ids=repr)
def test_an_unknown_attribute_is_refused_whatever_its_value(saved, value):
    """A feature that is on by default is switched off by such a value."""
    rewrite(saved, some_new_feature=value)
    with pytest.raises(UserError, match=r"not understood.*some_new_feature="):
        load(saved)


@pytest.mark.parametrize(("name", "off"), OFF.items())
def test_a_feature_that_the_family_lacks_is_accepted_where_it_is_off(saved, name, off):
    rewrite(saved, **{name: off})
    assert load(saved)[0].config == LLAMA_LIKE
    rewrite(saved, **{name: {"0": [1]} if off == {} else True})
    with pytest.raises(UserError, match=f"{name}|does not fit"):
        load(saved)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda t: t.pop("model.layers.1.mlp.up_proj.weight"), r"missing tensors: layers\.1\.mlp\.up_proj\.weight"),
        (lambda t: t.update({"model.layers.0.lora": np.ones(2, np.float32)}), r"does not have: layers\.0\.lora"),
        (
            lambda t: t.update({"model.norm.weight": np.ones(5, np.float32)}),
            r"norm\.weight is \[5\] and should be \[32\]",
        ),
        (lambda t: t.update({"model.norm.weight": np.ones(32, np.int32)}), r"norm\.weight is I32"),
        (lambda t: t.pop("lm_head.weight"), "lm_head"),
    ],
)
def test_tensors_that_do_not_fit_are_named(saved, change, message):
    retensor(saved, change)
    with pytest.raises(UserError, match=message):
        load(saved)


@pytest.mark.parametrize("name", ["../other/model.safetensors", "/etc/passwd", "sub/m.safetensors", "m.bin", 3, ".."])
def test_an_index_does_not_leave_its_directory(tmp_path, name):
    directory = save(peaky(LLAMA_LIKE), tmp_path / "m", max_file_bytes=30_000)
    index = json.loads((directory / "model.safetensors.index.json").read_text())
    index["weight_map"]["model.norm.weight"] = name
    (directory / "model.safetensors.index.json").write_text(json.dumps(index))
    with pytest.raises(UserError, match="not a safetensors file in this directory"):
        load(directory)


@pytest.mark.parametrize("damage", ["truncated", "header length", "offsets", "empty"])
def test_a_damaged_file_is_refused(saved, damage):
    file = saved / "model.safetensors"
    data = file.read_bytes()
    if damage == "truncated":
        data = data[:-10]
    elif damage == "header length":
        data = (2**60).to_bytes(8, "little") + data[8:]
    elif damage == "empty":
        data = b""
    else:
        size = int.from_bytes(data[:8], "little")
        header = json.loads(data[8 : 8 + size])
        header["model.norm.weight"]["data_offsets"] = header["lm_head.weight"]["data_offsets"]
        text = json.dumps(header).encode().ljust(size)[:size]
        data = data[:8] + text + data[8 + size :]
    file.write_bytes(data)
    with pytest.raises(UserError, match=r"model\.safetensors is not a whole safetensors file"):
        load(saved)


def reheader(change):
    """A change of a file's bytes by a change of its header."""

    def change_bytes(data):
        size = int.from_bytes(data[:8], "little")
        header = json.loads(data[8 : 8 + size])
        change(header)
        text = json.dumps(header).encode()
        return len(text).to_bytes(8, "little") + text + data[8 + size :]

    return change_bytes


@pytest.mark.parametrize(
    "damage",
    [
        lambda data: data[:5],
        lambda data: (2**63).to_bytes(8, "little") + data[8:],
        lambda data: data[:8] + b"}" + data[9:],
        lambda data: data + b"more",
        reheader(lambda h: h["lm_head.weight"].update(data_offsets=[0, 2**62])),
        reheader(lambda h: h["lm_head.weight"].update(data_offsets=[100, 4])),
        reheader(lambda h: h["lm_head.weight"].update(shape=[64, 33])),
        reheader(lambda h: h["lm_head.weight"].update(shape=[-64, 32])),
        reheader(lambda h: h["lm_head.weight"].update(shape=[2**40, 2**40])),
        reheader(lambda h: h["lm_head.weight"].update(dtype="PICKLE")),
        reheader(lambda h: h.pop("model.norm.weight")),  # bytes that belong to no tensor
    ],
    ids=[
        *("no header", "length past any file", "not JSON", "bytes after the end", "offset past the end"),
        *("offsets reversed", "shape too large", "negative shape", "overflowing shape", "unknown type", "a hole"),
    ],
)
def test_a_malicious_file_is_refused(saved, damage):
    file = saved / "model.safetensors"
    file.write_bytes(damage(file.read_bytes()))
    with pytest.raises(UserError, match=r"model\.safetensors is not a whole safetensors file"):
        load(saved)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda index: index.pop("weight_map"), "has no weight_map"),
        (lambda index: index.update(weight_map=["model.norm.weight"]), "has no weight_map"),
        (
            lambda index: index["weight_map"].update({"model.extra": "model-00001-of-00005.safetensors"}),
            "does not have this tensor",
        ),
        (lambda index: index["weight_map"].update({"a": "model-9.safetensors"}), "which is missing"),
        (
            lambda index: index["weight_map"].update({"a": "..\\\\m.safetensors"}),
            "not a safetensors file in this directory",
        ),
        (lambda index: index["weight_map"].update({"a": None}), "not a safetensors file in this directory"),
    ],
)
def test_an_index_that_is_not_true(tmp_path, change, message):
    directory = save(peaky(LLAMA_LIKE), tmp_path / "m", max_file_bytes=30_000)
    file = directory / "model.safetensors.index.json"
    index = json.loads(file.read_text())
    first = sorted(set(index["weight_map"].values()))[0]
    change(index)
    file.write_text(json.dumps(index).replace("model-00001-of-00005.safetensors", first))
    with pytest.raises(UserError, match=message):
        load(directory)


def test_an_unknown_architecture_lists_those_that_are_supported(saved):
    rewrite(saved, architectures=["BertForMaskedLM"], model_type="bert")
    with pytest.raises(UserError) as error:
        load(saved)
    for family in families():
        assert family.architecture in str(error.value)


def test_what_is_missing_extra_and_misshaped_is_named_all_at_once_before_anything_is_read(saved, monkeypatch):
    def change(tensors):
        del tensors["model.layers.2.self_attn.k_proj.weight"]
        tensors["model.layers.3.mlp.up_proj.weight"] = np.ones((48, 32), np.float32)
        tensors["model.layers.0.mlp.down_proj.weight"] = np.ones((48, 32), np.float32)

    retensor(saved, change)
    monkeypatch.setattr(StoredTensor, "read", lambda self, window: pytest.fail("read"))
    with pytest.raises(UserError) as error:
        load(saved)
    for said in (
        "missing tensors: layers.2.self_attn.k_proj.weight",
        "does not have: layers.3.mlp.up_proj.weight",
        "layers.0.mlp.down_proj.weight is [48, 32] and should be [32, 48]",
    ):
        assert said in str(error.value)


@pytest.mark.parametrize("dtype", [jnp.int32, jnp.bool_, "float7"])
def test_a_dtype_that_no_parameter_has(saved, dtype):
    with pytest.raises(UserError, match="dtype"):
        load(saved, dtype=dtype)


def test_pickles_are_not_opened(saved):
    (saved / "model.safetensors").rename(saved / "pytorch_model.bin")
    with pytest.raises(UserError, match=r"pytorch_model\.bin cannot be used"):
        load(saved)


def test_places_that_are_not_there(tmp_path, saved):
    with pytest.raises(UserError, match="no directory"):
        load(tmp_path / "absent")
    with pytest.raises(UserError, match=r"no config\.json"):
        load(tmp_path)
    with pytest.raises(UserError, match="revision"):
        load(saved, revision="main")
    with pytest.raises(UserError, match=r"stdlib-small.*could not be fetched"):
        load("no-such-owner/no-such-model", local_files_only=True)
    (saved / "config.json").write_text("{")
    with pytest.raises(UserError, match="not JSON"):
        load(saved)


# ---- saving --------------------------------------------------------------------------------------------------------


def test_a_directory_is_replaced_only_when_asked(saved):
    with pytest.raises(UserError, match="overwrite=True"):
        save(peaky(LLAMA_LIKE, 1), saved)
    assert_same_bits(load(saved)[0], peaky(LLAMA_LIKE))
    save(peaky(LLAMA_LIKE, 1), saved, overwrite=True)
    assert_same_bits(load(saved)[0], peaky(LLAMA_LIKE, 1))
    assert [path.name for path in saved.parent.iterdir()] == ["llama"]


def test_overwrite_does_not_remove_what_is_no_model(tmp_path):
    (tmp_path / "thesis.tex").write_text("precious")
    with pytest.raises(UserError, match="exists"):
        save(peaky(LLAMA_LIKE), tmp_path, overwrite=True)


def test_overwrite_does_not_remove_a_run(tmp_path):
    """Which has a config.json as well, and may have a model's weights lying beside its checkpoints."""
    (tmp_path / "config.json").write_text("{}")
    (tmp_path / "checkpoints").mkdir()
    for weights in (False, True):
        if weights:
            (tmp_path / "model.safetensors").write_bytes(b"")
        with pytest.raises(UserError, match="contains no model, or contains a run too"):
            save(peaky(LLAMA_LIKE), tmp_path, overwrite=True)
        assert (tmp_path / "checkpoints").is_dir()


def test_what_a_killed_save_left_is_put_right(saved):
    """Killed between its two renames: the old model is hidden, the new one not there yet."""
    hidden = saved.with_name(".llama.old")
    saved.rename(hidden)
    saved.with_name(".llama.new").mkdir()
    with pytest.raises(UserError, match="overwrite=True"):
        save(peaky(LLAMA_LIKE, 1), saved)
    assert_same_bits(load(saved)[0], peaky(LLAMA_LIKE))
    saved.rename(hidden)
    save(peaky(LLAMA_LIKE, 1), saved, overwrite=True)
    assert_same_bits(load(saved)[0], peaky(LLAMA_LIKE, 1))
    assert [path.name for path in saved.parent.iterdir()] == ["llama"]


def test_a_save_interrupted_between_its_renames_leaves_the_old_model(saved, monkeypatch):
    import os

    rename = os.replace

    def interrupted(source, target):
        if str(source).endswith(".new"):
            raise KeyboardInterrupt
        rename(source, target)

    monkeypatch.setattr(os, "replace", interrupted)
    with pytest.raises(KeyboardInterrupt):
        save(peaky(LLAMA_LIKE, 1), saved, overwrite=True)
    monkeypatch.undo()
    assert_same_bits(load(saved)[0], peaky(LLAMA_LIKE))
    assert [path.name for path in saved.parent.iterdir()] == ["llama"]


def test_through_a_link_its_target_is_replaced(saved, tmp_path):
    link = tmp_path / "link"
    link.symlink_to(saved)
    save(peaky(LLAMA_LIKE, 1), link, overwrite=True)
    assert link.is_symlink()
    assert_same_bits(load(saved)[0], peaky(LLAMA_LIKE, 1))


def test_a_file_is_no_place_for_a_model(tmp_path):
    (tmp_path / "thesis.tex").write_text("precious")
    with pytest.raises(UserError, match="is a file"):
        save(peaky(LLAMA_LIKE), tmp_path / "thesis.tex", overwrite=True)
    assert (tmp_path / "thesis.tex").read_text() == "precious"


def adapted(model):
    """With an adapter that adds zero on every layer's queries."""
    keys = jax.random.split(jax.random.key(0), model.config.n_layers)
    return replace_each(model, "blocks.*.attn.q", lambda linear, key: LoRA(linear, key, rank=2), keys)


@pytest.mark.parametrize(
    ("change", "odd"),
    [
        (adapted, r"blocks\.0\.attn\.q\.linear\.weight"),
        (lambda model: adapted(replan(model, "*")), r"blocks\.0\.attn\.q\.linear\.weight"),
        (lambda model: replace(model, "ln_final", lambda n: FrozenNorm(n, jnp.float32(1))), r"ln_final\.norm\.weight"),
        (lambda model: replace(model, "ln_final", lambda _: None), r"ln_final\.weight is missing"),
    ],
    ids=["lora", "lora unrolled", "frozen norm", "nothing"],
)
def test_a_model_with_other_parts_is_not_saved(tmp_path, change, odd):
    with pytest.raises(UserError, match=rf"not those of its config: .*{odd}.*Surgery is saved apart"):
        save(change(peaky(LLAMA_LIKE)), tmp_path / "m")
    assert list(tmp_path.iterdir()) == []


def test_a_merged_model_is_saved(tmp_path):
    merged = replace(adapted(peaky(LLAMA_LIKE)), LoRA, lambda lora: lora.merged())
    assert_same_bits(load(save(merged, tmp_path / "m"))[0], peaky(LLAMA_LIKE))


def test_a_file_that_was_changed_exchanged_or_removed_is_refused(tmp_path):
    model, other = peaky(LLAMA_LIKE), jax.tree.map(lambda a: a * 2, peaky(LLAMA_LIKE))
    directory, others = save_with_digests(model, tmp_path / "m"), save_with_digests(other, tmp_path / "other")
    assert_same_bits(load(directory)[0], model)
    for name in ("config.json", "model.safetensors"):
        whole = (directory / name).read_bytes()
        (directory / name).write_bytes(
            whole.replace(b"rms_norm_eps", b"rms_norm_epr").replace(b"layers.1", b"layers.0")
        )
        with pytest.raises(UserError):
            load(directory)
        (directory / name).unlink()
        with pytest.raises(UserError, match=f"has no {name}"):
            load(directory)
        (directory / name).write_bytes(whole)
    (directory / "model.safetensors").write_bytes((others / "model.safetensors").read_bytes())
    with pytest.raises(UserError, match=r"model\.safetensors was changed since it was written"):
        load(directory)
    (directory / DIGESTS).unlink()
    assert_same_bits(load(directory)[0], other)


def test_a_save_that_fails_leaves_nothing(tmp_path, monkeypatch):
    monkeypatch.setattr("os.fsync", lambda *a, **k: (_ for _ in ()).throw(OSError("disk full")))
    with pytest.raises(UserError, match="disk full"):
        save(peaky(LLAMA_LIKE), tmp_path / "m")
    assert list(tmp_path.iterdir()) == []


def test_what_no_family_has_is_not_saved(tmp_path):
    with pytest.raises(UserError, match=r"none of the families gpt2, .*llama"):
        save(peaky(dataclasses.replace(LLAMA_LIKE, qk_norm="all heads")), tmp_path / "m")
    with pytest.raises(UserError, match="surgery is saved apart"):
        save(edit(peaky(LLAMA_LIKE), at("blocks.0.attn_out", Zero())), tmp_path / "m")
