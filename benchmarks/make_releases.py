"""Write the file of published releases, `jax_interp/assets/dictionary-releases.json.gz`.

    python benchmarks/make_releases.py PATH/sae_lens/pretrained_saes.yaml

The facts of a release (repository, format, model, paths, stated figures, settings that correct its files) are taken
from the list that SAELens ships. Sets that it cannot load are added below. The result does not depend on the time or
the machine, so a run with the same list writes the same bytes.
"""

from __future__ import annotations

import argparse
import gzip
import json
from pathlib import Path
from typing import Any

import yaml

TARGET = Path(__file__).parent.parent / "jax_interp" / "assets" / "dictionary-releases.json.gz"

FORMATS = {  # by the name of the loader in the list
    None: "saelens",
    "sae_lens": "saelens",
    "connor_rob_hook_z": "connor_rob_hook_z",
    "gemma_2": "gemma-scope",
    "gemma_2_transcoder": "gemma-scope",
    "gemma_3": "gemma-scope-2",
    "llama_scope": "llama-scope",
    "llama_scope_r1_distill": "llama-scope-r1",
    "dictionary_learning_1": "dictionary_learning",
    "deepseek_r1": "deepseek-r1",
    "qwen_scope": "qwen-scope",
    "mwhanna_transcoder": "circuit-tracer",
    "mntss_clt_layer_transcoder": "circuit-tracer",
    "temporal": "temporal",
    "goodfire": "goodfire",
}
NOT_SETTINGS = {"dataset_path"}  # says nothing about the numbers

CROSS_LAYER = {
    "clt-gemma-2-2b-426k": ("mntss/clt-gemma-2-2b-426k", "google/gemma-2-2b"),
    "clt-gemma-2-2b-2.5M": ("mntss/clt-gemma-2-2b-2.5M", "google/gemma-2-2b"),
    "clt-llama-3.2-1b-524k": ("mntss/clt-llama-3.2-1b-524k", "meta-llama/Llama-3.2-1B"),
    "clt-gpt-oss-20b-131k": ("mntss/clt-131k", "openai/gpt-oss-20b"),
}

PARTS = {"mntss-gemma-2-2b-2.5m-clt-as-per-layer": "clt-gemma-2-2b-2.5M"}
"""Releases whose entries are layers of a cross-layer dictionary, and the release of the whole."""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("list", type=Path, help="pretrained_saes.yaml of SAELens")
    theirs = yaml.safe_load(parser.parse_args().list.read_text())
    releases = {name: release(entry) for name, entry in theirs.items()} | added()
    for name, whole in PARTS.items():
        releases[name] |= {"whole": whole}
    text = json.dumps(releases, sort_keys=True, separators=(",", ":"))
    TARGET.write_bytes(gzip.compress(text.encode(), 9, mtime=0))
    n = sum(len(found["dictionaries"]) for found in releases.values())
    print(f"{len(releases)} releases with {n:,} dictionaries: {TARGET.stat().st_size:,} bytes in {TARGET}")


def release(entry: dict[str, Any]) -> dict[str, Any]:
    """One release: where it is, and what each of its ids stands for."""
    overrides = entry.get("config_overrides") or {}
    settings = {name: value for name, value in overrides.items() if name not in NOT_SETTINGS}
    return {
        "repository": entry["repo_id"],
        "format": FORMATS[entry.get("conversion_func")],
        "model": entry["model"],
        "dictionaries": {one["id"]: dictionary(one) for one in entry["saes"]},
    } | ({"settings": settings} if settings else {})


def dictionary(one: dict[str, Any]) -> dict[str, Any]:
    """The path of a dictionary, and the figures that its release states."""
    names = {"l0": "l0", "variance_explained": "variance_explained", "norm_scaling_factor": "scale"}
    stated = {short: float(one[name]) for name, short in names.items() if one.get(name) is not None}
    return {"path": str(one["path"]), **stated}


def added() -> dict[str, Any]:
    """Releases that the list does not have."""
    whole = {
        name: {
            "repository": repository,
            "format": "circuit-tracer",
            "model": model,
            "dictionaries": {"all": {"path": ""}},
        }
        for name, (repository, model) in CROSS_LAYER.items()
    }
    layers = {f"layer_{i}": {"path": f"layer_{i}.safetensors"} for i in range(16)}
    return whole | {
        "transcoder-llama-3.2-1b": {
            "repository": "mntss/transcoder-Llama-3.2-1B",
            "format": "circuit-tracer",
            "model": "meta-llama/Llama-3.2-1B",
            "dictionaries": layers,
        },
        "crosscoder-gemma-2-2b-model-diff": {
            "repository": "ckkissane/crosscoder-gemma-2-2b-model-diff",
            "format": "ckkissane",
            "model": "google/gemma-2-2b",
            "dictionaries": {"blocks.14.hook_resid_pre": {"path": "blocks.14.hook_resid_pre"}},
        },
    }


if __name__ == "__main__":
    main()
