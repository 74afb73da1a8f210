"""The quality of dictionaries at equal sparsity: ours and dictionary_learning's, trained on the same activations.

The activations are the residual stream after block 2 of stdlib-small. They are scaled as both libraries require, and
for every seed both libraries get them in the same order. Dictionaries have 2,048 features. They are exported for raw
activations, and `evaluate` measures them on the same held-out text. TopK, BatchTopK and JumpReLU are trained to an L0.
ReLU and Gated are trained with several strengths; FVU and loss recovered are interpolated to the wanted L0, linearly in
log L0.

Neither library is tuned. Ours uses the defaults of `variants`, theirs the defaults of its trainers, with two
exceptions: a schedule that is longer than the run is cut to the length of the run, and Gated and JumpReLU use our
learning rate, because their default is for runs a hundred times as long.

    python benchmarks/quality.py --peers DIR [--kinds TopK BatchTopK] [--seeds 3] [--steps 1500]
"""

from __future__ import annotations

import argparse
import dataclasses
import itertools
import json
import math
import os
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path

from timing import ROOT, taken, versions, write

L0 = 32
FEATURES = 2048
BATCH = 1024
ADDRESS = "blocks.2.resid_post"
OURS = ("jax", "jaxlib", "flax")
THEIRS = ("torch", "dictionary-learning")
KINDS = ("ReLU", "Gated", "TopK", "BatchTopK", "JumpReLU")
# After 1,500 steps these strengths give values of L0 below and above the wanted L0.
STRENGTHS = {"ReLU": (0.009, 0.012), "Gated": (0.014, 0.017)}
THEIR_STRENGTHS = {"ReLU": (0.12, 0.15), "Gated": (0.2, 0.4)}


# ---- in dictionary_learning's environment --------------------------------------------------------------------------


def train_theirs(rows_file: str, kind: str, strength: float, seed: int, steps: int, out: str) -> None:
    """Train on rows with E‖x‖² = 1 (their normalisation). Returns the weights in our layout."""
    import numpy as np
    import torch
    from dictionary_learning.trainers.batch_top_k import BatchTopKTrainer
    from dictionary_learning.trainers.gdm import GatedSAETrainer
    from dictionary_learning.trainers.jumprelu import JumpReluTrainer
    from dictionary_learning.trainers.standard import StandardTrainer
    from dictionary_learning.trainers.top_k import TopKTrainer

    torch.set_num_threads(len(os.sched_getaffinity(0)))
    rows = np.load(rows_file, mmap_mode="r")
    norm = float(np.sqrt((np.asarray(rows[:50_000], np.float64) ** 2).sum(1).mean()))
    warm = max(1, steps // 20)
    common = {
        "steps": steps, "activation_dim": rows.shape[1], "dict_size": FEATURES, "layer": 2, "lm_name": "none",
        "device": "cpu", "seed": seed, "warmup_steps": warm,
    }  # fmt: skip
    trainer = {
        "ReLU": lambda: StandardTrainer(l1_penalty=strength, sparsity_warmup_steps=2 * warm, **common),
        "Gated": lambda: GatedSAETrainer(l1_penalty=strength, sparsity_warmup_steps=2 * warm, lr=1e-3, **common),
        "TopK": lambda: TopKTrainer(k=L0, threshold_start_step=warm, **common),
        "BatchTopK": lambda: BatchTopKTrainer(k=L0, threshold_start_step=warm, **common),
        "JumpReLU": lambda: JumpReluTrainer(target_l0=L0, sparsity_warmup_steps=2 * warm, lr=1e-3, **common),
    }[kind]()
    for step in range(steps):
        batch = rows[order(len(rows), step, seed)].astype(np.float32) / norm
        trainer.update(step, torch.from_numpy(batch))
    ae = trainer.ae
    take = lambda a: a.detach().numpy()
    if kind == "JumpReLU":
        found = {"W_enc": take(ae.W_enc), "b_enc": take(ae.b_enc), "W_dec": take(ae.W_dec), "b_dec": take(ae.b_dec)}
        found |= {"threshold": take(ae.threshold), "centred": np.array(False)}
    elif kind == "Gated":
        found = {"W_enc": take(ae.encoder.weight).T, "b_enc": take(ae.gate_bias), "W_dec": take(ae.decoder.weight).T,
                 "b_dec": take(ae.decoder_bias), "r_mag": take(ae.r_mag), "b_mag": take(ae.mag_bias)}  # fmt: skip
    else:
        b_dec = ae.bias if kind == "ReLU" else ae.b_dec
        found = {"W_enc": take(ae.encoder.weight).T, "b_enc": take(ae.encoder.bias), "W_dec": take(ae.decoder.weight).T,
                 "b_dec": take(b_dec)}  # fmt: skip
        if kind == "BatchTopK":
            found["threshold"] = np.full(FEATURES, float(ae.threshold), np.float32)
    np.savez(out, norm=norm, **found)


def order(n: int, step: int, seed: int):
    """The rows of a step. They are the same for both libraries."""
    import numpy as np

    return np.sort(np.random.default_rng((seed, step)).integers(0, n, BATCH))


# ---- in ours -------------------------------------------------------------------------------------------------------


def theirs_as_ours(path: str, kind: str):
    """Their weights as a `Dictionary` for raw activations."""
    import jax.numpy as jnp
    import numpy as np

    from jax_interp.dictionaries import Dictionary, ReLU, TopK
    from jax_interp.dictionaries.activations import Gate, Jump

    found = {name: np.array(a) for name, a in np.load(path).items()}
    norm = float(found["norm"])
    raw = lambda name: jnp.asarray(found[name] * norm, jnp.float32)  # biases and thresholds, in raw units
    activation = {
        "ReLU": lambda: ReLU(),
        "TopK": lambda: TopK(L0),
        "Gated": lambda: Gate(jnp.asarray(found["r_mag"]), raw("b_mag")),
        "BatchTopK": lambda: Jump.of(raw("threshold")),
        "JumpReLU": lambda: Jump.of(raw("threshold")),
    }[kind]()
    return Dictionary(
        jnp.asarray(found["W_enc"]), raw("b_enc"), jnp.asarray(found["W_dec"]), raw("b_dec"), activation,
        centred=bool(found.get("centred", True)),
    )  # fmt: skip


def train_ours(store, kind: str, strength: float, seed: int, steps: int):
    from jax_interp.dictionaries import variants
    from jax_interp.dictionaries.training.from_store import train_from_store
    from jax_interp.training import QUIET

    fields = {"n_features": FEATURES, "steps": steps, "seed": seed}
    config = {
        "ReLU": lambda: variants.relu(ADDRESS, l1=strength, **fields),
        "Gated": lambda: variants.gated(ADDRESS, l1=strength, **fields),
        "TopK": lambda: variants.topk(ADDRESS, k=L0, **fields),
        "BatchTopK": lambda: variants.batch_topk(ADDRESS, k=L0, **fields),
        "JumpReLU": lambda: variants.jumprelu(ADDRESS, target=float(L0), **fields),
    }[kind]()
    rows = store.shards[0].rows

    @dataclasses.dataclass(frozen=True)
    class SameOrder(type(store)):
        def batch_at(self, step, batch, seed=0):
            return rows[order(len(rows), step, seed)]

    same = SameOrder(**{field.name: getattr(store, field.name) for field in dataclasses.fields(store)})
    return train_from_store(config, same, batch=BATCH, log=QUIET)


def at_l0(points: list[dict]) -> dict | None:
    """FVU and loss recovered, interpolated to an L0. None if all strengths give a higher L0, or all a lower L0."""
    if len(points) == 1:
        return points[0]
    points = sorted(points, key=lambda p: p["l0"])
    for low, high in itertools.pairwise(points):
        if low["l0"] <= L0 <= high["l0"]:
            t = (math.log(L0) - math.log(low["l0"])) / (math.log(high["l0"]) - math.log(low["l0"]))
            return {name: low[name] + t * (high[name] - low[name]) for name in ("l0", "fvu", "recovered")}
    return None


def run(args: argparse.Namespace) -> None:
    import numpy as np

    from jax_interp import load
    from jax_interp.data.activation_shards import StoreLayout
    from jax_interp.data.activation_writing import write_activation_store
    from jax_interp.data.text import text_for
    from jax_interp.dictionaries import evaluate

    model, tokenizer = load("stdlib-small")
    text = text_for("stdlib", tokenizer)
    held_out = text.validation_batches(8, 256, 64)

    def measured(dictionary) -> dict:
        result = evaluate(model, ADDRESS, dictionary, held_out)
        r, c = result.reconstruction, result.cross_entropy
        return {"l0": r.l0, "fvu": r.fvu, "recovered": c.recovered_mean, "dead": result.density.dead}

    python = Path(args.peers) / "v_dl" / "bin" / "python"
    their_versions = subprocess.run([python, __file__, "--versions"], check=True, capture_output=True, text=True).stdout
    results = []
    with tempfile.TemporaryDirectory() as directory:
        store = write_activation_store(
            f"{directory}/store", model, ADDRESS, text.training_batches(8, 256, 0), args.rows,
            layout=StoreLayout(args.rows, "float32"), quiet=True,
        )  # fmt: skip
        rows_file = f"{directory}/rows.npy"
        np.save(rows_file, store.shards[0].rows)
        for kind in args.kinds:
            for library, strengths in (("ours", STRENGTHS), ("dictionary_learning", THEIR_STRENGTHS)):
                for seed in range(args.seeds):
                    points = []
                    for strength in strengths.get(kind, (0.0,)):
                        if library == "ours":
                            dictionary = train_ours(store, kind, strength, seed, args.steps)
                        else:
                            weights = f"{directory}/theirs.npz"
                            request = json.dumps([rows_file, kind, strength, seed, args.steps, weights])
                            subprocess.run([python, __file__, "--theirs", request], check=True, stdout=sys.stderr)
                            dictionary = theirs_as_ours(weights, kind)
                        points.append(measured(dictionary) | {"strength": strength})
                        print(library, kind, "seed", seed, points[-1], file=sys.stderr, flush=True)
                    results.append({"library": library, "kind": kind, "seed": seed, "points": points})
    print(table(results, args))
    record = {
        **taken(__file__),
        "args": {name: getattr(args, name) for name in ("kinds", "seeds", "steps", "rows")},
        "versions": {"ours": versions(*OURS), "dictionary_learning": json.loads(their_versions)},
        "results": results,
    }
    print(f"written: {write(record, Path(args.out))}", file=sys.stderr)


def table(results: list[dict], args: argparse.Namespace) -> str:
    lines = [f"L0 {L0}, {args.steps} steps of {BATCH} rows, {args.seeds} seeds: mean (lowest - highest)", "",
             "| | L0 | FVU | loss recovered |", "|---|---|---|---|"]  # fmt: skip
    for kind in args.kinds:
        for library in ("ours", "dictionary_learning"):
            found = [at_l0(r["points"]) for r in results if (r["kind"], r["library"]) == (kind, library)]
            if not found or None in found:
                lines.append(f"| {kind}, {library} | no strength on either side of {L0} | | |")
                continue
            cells = []
            for name in ("l0", "fvu", "recovered"):
                values = [point[name] for point in found]
                cells.append(f"{statistics.mean(values):.4g} ({min(values):.4g} - {max(values):.4g})")
            lines.append(f"| {kind}, {library} | {' | '.join(cells)} |")
    return "\n".join(lines)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--peers", default=os.environ.get("JAX_INTERP_PEERS"))
    parser.add_argument("--kinds", nargs="+", choices=KINDS, default=list(KINDS))
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--steps", type=int, default=1500)
    parser.add_argument("--rows", type=int, default=300_000)
    parser.add_argument("--out", default=str(ROOT / "out"))
    parser.add_argument("--theirs", help=argparse.SUPPRESS)
    parser.add_argument("--versions", action="store_true", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.versions:
        print(json.dumps(versions(*THEIRS)))
    elif arguments.theirs:
        train_theirs(*json.loads(arguments.theirs))
    elif not arguments.peers:
        sys.exit("error: give --peers DIR, the folder that benchmarks/make_peers.sh made")
    else:
        run(arguments)
