"""Published releases and the hub: every id resolves, only the needed files are fetched, errors are one clear line."""

from __future__ import annotations

import bisect
import json
import re
from pathlib import Path
from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from safetensors.numpy import save_file

from jax_interp.core.errors import UserError
from jax_interp.dictionaries import ReLU, load_dictionary, loading, save_dictionary, upload_dictionary
from jax_interp.dictionaries.formats.detection import format_named
from jax_interp.dictionaries.forms import init_sae
from jax_interp.dictionaries.hub import Fetched, files_of, parse_hub_address
from jax_interp.dictionaries.releases import Entry, Release, nearest, releases
from jax_interp.dictionaries.storage import Saved

SAE = init_sae(jax.random.key(0), 4, 8, ReLU())
OURS = ("clt-gemma", "clt-llama", "clt-gpt-oss", "transcoder-llama", "crosscoder-gemma")


def test_every_id_of_every_release_is_known():
    theirs = {name: found for name, found in releases().items() if not name.startswith(OURS)}
    assert (len(theirs), sum(len(found.entries) for found in theirs.values())) == (170, 13_857)
    for name, release in releases().items():
        assert re.fullmatch(r"[\w.-]+/[\w.-]+", release.repository), name
        for id, entry in release.entries.items():
            assert release.entry(id) is entry
            assert entry.path == entry.path.strip("/")
            assert not {"..", "."} & set(entry.path.split("/")), (name, id)


LAYOUTS = {  # the files of one dictionary in the repositories of each format, where {p} is the path of the entry
    "saelens": ["{p}/cfg.json", "{p}/sae_weights.safetensors"],
    "connor_rob_hook_z": ["{p}", "{stem}_cfg.json"],
    "gemma-scope": ["{p}/params.npz"],
    "gemma-scope-2": ["{p}/config.json", "{p}/params.safetensors"],
    "llama-scope": ["{p}/hyperparams.json", "{p}/checkpoints/final.safetensors"],
    "llama-scope-r1": ["{p}/config.json", "{p}/sae_weights.safetensors"],
    "dictionary_learning": ["{p}/ae.pt", "{p}/config.json"],
    "deepseek-r1": ["{p}"],
    "qwen-scope": ["{p}"],
    "circuit-tracer": ["{p}", "config.yaml", "wandb-config.yaml"],
    "temporal": ["{p}/conf.yaml", "{p}/latest_ckpt.safetensors"],
    "goodfire": ["{p}"],
    "ckkissane": ["{p}/cfg.json", "{p}/cc_weights.pt"],
}

SHARED = ("config.yaml", "wandb-config.yaml")


def test_every_id_resolves_to_its_own_files():
    """Of all files of its repository, an id takes exactly those of its dictionary."""
    paths: dict[str, set[tuple[str, str]]] = {}
    for release in releases().values():
        paths.setdefault(release.repository, set()).update((release.format, e.path) for e in release.entries.values())

    def own(format: str, path: str) -> set[str]:
        return {text.format(p=path, stem=path.removesuffix(".pt")) for text in LAYOUTS[format]}

    listings = {
        repository: sorted(set().union(*(own(*one) for one in found)))
        for repository, found in paths.items()
        if all(format in LAYOUTS for format, _ in found)
    }
    resolved = 0
    for release in releases().values():
        kind = format_named(release.format)
        if release.whole is not None:  # refused: its entries are no dictionaries
            continue
        for entry in release.entries.values():
            if not entry.path:  # a whole repository
                continue
            names = listings[release.repository]
            at = bisect.bisect_left(names, entry.path)
            near = names[max(0, at - 20) : at + 20]
            found = files_of(
                [*near, *(name for name in SHARED if name in names and name not in near)], entry.path, kind.hub_files
            )
            assert set(found) == own(release.format, entry.path), (release.name, entry.path)
            resolved += 1
    assert resolved == 13_857 - 26 + 1 + 16  # the crosscoder and the transcoders of Llama 3.2 are not in that list


def test_a_layer_of_a_cross_layer_dictionary_is_no_dictionary():
    with pytest.raises(UserError, match=r"layer_3 is one layer of .*load_dictionary\('clt-gemma-2-2b-2.5M'\)"):
        load_dictionary("mntss-gemma-2-2b-2.5m-clt-as-per-layer", "layer_3")
    assert releases()["clt-gemma-2-2b-2.5M"].repository == "mntss/clt-gemma-2-2b-2.5M"


def test_facts_of_releases():
    """Spot checks of numbers in the public lists: canonical ids, stated figures, settings that correct files."""
    gemma = releases()["gemma-scope-2b-pt-res"]
    entry = gemma.entry("layer_5/width_16k/average_l0_68")
    assert (gemma.repository, entry.path) == ("google/gemma-scope-2b-pt-res", "layer_5/width_16k/average_l0_68")
    canonical = releases()["gemma-scope-2b-pt-res-canonical"].entry("layer_0/width_16k/canonical")
    assert canonical.path == "layer_0/width_16k/average_l0_105"
    jb = releases()["gpt2-small-res-jb"]
    assert jb.settings == {"model_from_pretrained_kwargs": {"center_writing_weights": True}}
    assert releases()["mistral-7b-res-wg"].settings == {"normalize_activations": "constant_norm_rescale"}
    one = releases()["gemma-2b-res-jb"].entry("blocks.12.hook_resid_post")
    assert (one.norm_scaling_factor, one.stated["l0"]) == (0.21381938399317255, 62.0)


def test_near_names():
    assert nearest("gemma-scope-2b-res", releases())[0] == "gemma-scope-2b-pt-res"
    assert nearest("GEMMA-SCOPE-2B-PT-RES", releases()) == ["gemma-scope-2b-pt-res"]
    with pytest.raises(UserError, match="releases with a like name are gpt2-small-res-jb"):
        load_dictionary("gpt2-small-resjb", "blocks.0.hook_resid_pre")
    with pytest.raises(UserError, match=r"releases with a like name are gpt2-small-res-jb"):
        load_dictionary("gpt2-small-resjb")
    with pytest.raises(UserError, match=r"no id 'blocks.4.hook_resid_post'.*blocks.4.hook_resid_pre"):
        load_dictionary("gpt2-small-res-jb", "blocks.4.hook_resid_post")
    with pytest.raises(UserError, match=r"has 13 dictionaries, such as .*: give the id of one"):
        load_dictionary("gpt2-small-res-jb")
    with pytest.raises(UserError, match="a repository of the hub is hf:someone/some-saes"):
        load_dictionary("someone/some-saes")


@pytest.mark.parametrize(
    ("text", "wanted"),
    [
        ("hf:a/b", ("a/b", "", None)),
        ("hf://a/b/c/d.pt@v2", ("a/b", "c/d.pt", "v2")),
        ("hf:a/b@refs/pr/1", ("a/b", "", "refs/pr/1")),
        ("hf:a/b/c/", ("a/b", "c", None)),
    ],
)
def test_addresses_of_the_hub(text, wanted):
    assert parse_hub_address(text) == wanted


@pytest.mark.parametrize("text", ["hf:a", "hf:", "hf:a/b/../../etc", "hf:a b/c", "hf:/a/b"])
def test_other_addresses_are_refused(text):
    with pytest.raises(UserError, match="is not hf:owner/repository"):
        load_dictionary(text)


def test_only_the_files_of_one_dictionary():
    names = [
        "cfg.json",
        "l1/cfg.json",
        "l1/sae.safetensors",
        "l1/sub/x.json",
        "l1/optimizer.pt",
        "l1/checkpoints/final.safetensors",
        "l1/checkpoints/step_1.safetensors",
        "l2/cfg.json",
        "x.pt",
        "x_cfg.json",
        "l[1]/a.json",
    ]
    found = files_of(names, "l1")
    assert found == ["cfg.json", "l1/cfg.json", "l1/sae.safetensors", "l1/checkpoints/final.safetensors", "x_cfg.json"]
    assert files_of(names, "l[1]", ("{path}/*",)) == ["l[1]/a.json"]
    assert files_of(names, "", ("{path}/*",)) == ["cfg.json", "x.pt", "x_cfg.json"]
    assert files_of(names, "x.pt", ("{path}", "{stem}_cfg.json")) == ["x.pt", "x_cfg.json"]
    assert files_of(names, "l1/sae.safetensors", ("{path}", "{folder}/cfg.json")) == [
        "l1/cfg.json",
        "l1/sae.safetensors",
    ]
    assert files_of(names, "x.pt", ("{path}", "{folder}/cfg.json")) == ["cfg.json", "x.pt"]


class Hub:
    """A repository on a disk in place of the hub's client. It has the methods that are called, and records them."""

    def __init__(self, root: Path, monkeypatch):
        self.root, self.asked, self.commits = root, [], []
        for name in ("repo_info", "create_repo", "upload_folder"):
            monkeypatch.setattr(f"huggingface_hub.HfApi.{name}", getattr(self, name))
        monkeypatch.setattr("huggingface_hub.snapshot_download", self.snapshot_download)

    def repo_info(self, repository, revision=None):
        names = [str(path.relative_to(self.root)) for path in sorted(self.root.rglob("*")) if path.is_file()]
        return SimpleNamespace(sha="abc123", siblings=[SimpleNamespace(rfilename=name) for name in names])

    def snapshot_download(self, repository, revision=None, allow_patterns=None):
        self.asked.append((repository, revision, allow_patterns))
        return str(self.root)

    def create_repo(self, repository, private, exist_ok):
        self.commits.append((repository, private))

    def upload_folder(self, repo_id, folder_path, path_in_repo, commit_message, ignore_patterns):
        assert ignore_patterns == [".*"]
        for path in Path(folder_path).iterdir():
            if not path.name.startswith("."):
                target = self.root / path_in_repo / path.name
                target.parent.mkdir(parents=True, exist_ok=True)
                target.write_bytes(path.read_bytes())
        return SimpleNamespace(oid="def456")


@pytest.fixture
def hub(tmp_path, monkeypatch):
    save_dictionary(tmp_path / "layer_1", SAE, address="embed", model="toy")
    (tmp_path / "layer_2").mkdir()
    (tmp_path / "layer_2" / "trainer_state.pt").write_bytes(b"large")
    return Hub(tmp_path, monkeypatch)


def test_a_repository_is_loaded_at_its_commit(hub):
    saved = load_dictionary("hf:me/saes/layer_1@main")
    np.testing.assert_array_equal(saved.dictionary.W_enc, SAE.W_enc)
    assert saved.notes == ("from me/saes/layer_1 at abc123",)
    (asked,) = hub.asked
    assert asked[:2] == ("me/saes", "abc123")
    assert set(asked[2]) >= {"layer_1/dictionary.json", "layer_1/dictionary.safetensors"}
    assert not [pattern for pattern in asked[2] if "layer_2" in pattern]


def test_a_path_that_the_repository_lacks(hub):
    with pytest.raises(UserError, match="me/saes has no 'layer_7'; did you mean layer_"):
        load_dictionary("hf:me/saes/layer_7")
    with pytest.raises(UserError, match="names a revision already"):
        load_dictionary("hf:me/saes/layer_1@main", revision="v1")
    (hub.root / "config.json").write_text("{}")  # of the whole repository
    with pytest.raises(UserError, match="me/saes has no 'layer_7'"):
        load_dictionary("hf:me/saes/layer_7")
    for name in ("a.pt", "b.pt"):
        (hub.root / name).write_bytes(b"")
    with pytest.raises(UserError, match=r"me/saes has 2 dictionaries: give one, such as hf:me/saes/a.pt"):
        load_dictionary("hf:me/saes")
    assert hub.asked == []


def test_a_release_gives_its_files_its_settings_and_its_figures(hub, monkeypatch):
    seen = []
    original = loading.placing
    monkeypatch.setattr(loading, "placing", lambda *a, **k: seen.append(a) or original(*a, **k))
    entry = Entry("layer_1", {"l0": 12.0}, 0.5)
    release = Release("toys", "me/saes", "jax_interp", "toy", {"one": entry}, {"normalize_activations": "none"})
    monkeypatch.setattr(loading, "find_release", {"toys": release}.get)
    located = loading._located("toys", "one", None, None)
    assert located.files.settings == {"normalize_activations": "none", "norm_scaling_factor": 0.5}
    assert located.files.location == "me/saes/layer_1"
    for id in ("one", None):  # a release of one dictionary needs no id
        saved = load_dictionary("toys", id)
        assert (saved.stated, saved.model, saved.format) == ({"l0": 12.0}, "toy", "jax_interp")
    assert set(hub.asked[0][2]) == {"layer_1/dictionary.json", "layer_1/dictionary.safetensors"}


def test_an_upload_is_loaded_again(hub):
    saved = Saved(SAE, "embed", "toy", notes=("exact",))
    source = upload_dictionary(saved, "me/new", path="mine/a", private=True)
    assert (source, hub.commits) == ("hf:me/new/mine/a@def456", [("me/new", True)])
    again = load_dictionary(source)
    np.testing.assert_array_equal(again.dictionary.W_dec, SAE.W_dec)
    assert again.notes[0] == "exact"
    assert sorted(path.name for path in (hub.root / "mine" / "a").iterdir()) == [
        "dictionary.json", "dictionary.safetensors",
    ]  # fmt: skip
    with pytest.raises(UserError, match="is not owner/repository"):
        upload_dictionary(saved, "new")
    with pytest.raises(UserError, match="do not say which model"):
        upload_dictionary(SAE, "me/new", address="embed")


def test_an_upload_that_the_hub_refuses(monkeypatch):
    def refused(*_, **__):
        raise OSError("401 Unauthorized\nlong text")

    monkeypatch.setattr("huggingface_hub.HfApi.create_repo", refused)
    with pytest.raises(UserError, match=r"the upload to me/saes failed: 401 Unauthorized$"):
        upload_dictionary(SAE, "me/saes", address="embed", model="toy")


@pytest.fixture
def offline(tmp_path, monkeypatch):
    """The cache of the hub's client, without a network."""
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    return tmp_path


def test_without_a_network_the_cache_is_used(offline):
    commit = "0123456789abcdef0123456789abcdef01234567"
    repository = offline / "models--me--saes"
    save_dictionary(repository / "snapshots" / commit / "layer_1", SAE, address="embed", model="toy")
    (repository / "refs").mkdir()
    (repository / "refs" / "main").write_text(commit)
    saved = load_dictionary("hf:me/saes/layer_1")
    np.testing.assert_array_equal(saved.dictionary.W_enc, SAE.W_enc)
    assert saved.notes == (f"from me/saes/layer_1 at {commit}",)
    assert load_dictionary(f"hf:me/saes/layer_1@{commit}", dtype=jnp.bfloat16).dictionary.b_dec.dtype == jnp.bfloat16
    for source in ("hf:me/saes/layer_2", "hf:me/saes/layer_1@v2", "hf:you/saes"):
        with pytest.raises(UserError, match=r"^(me|you)/saes.* is not in the cache and could not be fetched") as error:
            load_dictionary(source)
        assert "\n" not in str(error.value)


def test_what_a_release_says_of_its_files_changes_the_numbers(tmp_path, monkeypatch):
    """SAELens's rules: a constant for `expected_average_only_in`, another normalisation, centred writing weights."""
    rng = np.random.default_rng(0)
    arrays = {"W_enc": (4, 8), "W_dec": (8, 4), "b_enc": (8,), "b_dec": (4,)}
    arrays = {name: rng.normal(size=shape).astype(np.float32) for name, shape in arrays.items()}
    save_file(arrays, tmp_path / "sae_weights.safetensors")
    monkeypatch.setattr(
        loading, "fetch", lambda repository, path, **_: Fetched(tmp_path, f"{repository}/{path}", "abc")
    )

    def loaded(release, id, **settings):
        config = {"d_in": 4, "d_sae": 8, "dtype": "torch.float32", "device": "cpu", "model_name": "m", "hook_point": id}
        (tmp_path / "cfg.json").write_text(json.dumps(config | settings))
        return load_dictionary(release, id, check=False)

    jb = loaded("gpt2-small-res-jb", "blocks.7.hook_resid_pre")
    assert any("center_writing_weights" in note for note in jb.notes)
    assert jb.stated == {"l0": 54.0, "variance_explained": 0.9}
    gemma = loaded("gemma-2b-res-jb", "blocks.12.hook_resid_post", normalize_activations="expected_average_only_in")
    scale = np.float32(0.21381938399317255)
    np.testing.assert_allclose(gemma.dictionary.W_enc, arrays["W_enc"] * scale, rtol=1e-6)
    np.testing.assert_allclose(gemma.dictionary.W_dec, arrays["W_dec"] / scale, rtol=1e-6)
    np.testing.assert_allclose(gemma.dictionary.b_dec, arrays["b_dec"] / scale, rtol=1e-6)
    np.testing.assert_array_equal(gemma.dictionary.b_enc, arrays["b_enc"])
    mistral = loaded("mistral-7b-res-wg", "blocks.8.hook_resid_pre", normalize_activations="none")
    assert mistral.dictionary.norm == "fixed_norm"
