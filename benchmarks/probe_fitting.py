"""Logistic probes of 12 layers and five strengths against scikit-learn, and 100 seeds of one probe against one.

4,096 examples of width 2,048 at each layer. `even`: columns of equal variance without correlation. `decaying`: the i-th
eigenvalue of the covariance falls as 1/i, and the mean is not 0, as in activations. scikit-learn's default solver runs
twice: as it is, in float32, where its weights are 4e-4 to 5e-2 from the optimum (even rows, C up to 1); and in float64
with a small tolerance. scikit-learn is timed on one layer. Run it in an environment that has
scikit-learn (`.venv-parity`). `--optimum` instead compares all weights with the optimum (that of scikit-learn's
Newton-Cholesky solver in float64), and prints the seconds of one run each.
"""

from __future__ import annotations

import argparse
import sys

from timing import Rounds, Work, Worker, main

SIZES = {"layers": 12, "examples": 4096, "width": 2048, "strengths": [1e-3, 1e-2, 1e-1, 1.0, 10.0], "seeds": 100}
SMALL = {"layers": 2, "examples": 256, "width": 64, "strengths": [1e-3, 1e-2, 1e-1, 1.0, 10.0], "seeds": 5}
KINDS = ("even", "decaying")


def rows(sizes, kind: str, layer: int):
    """(activations of one layer, labels)."""
    import numpy as np

    rng = np.random.default_rng([layer, KINDS.index(kind)])
    n, d = sizes["examples"], sizes["width"]
    x = rng.normal(size=(n, d)).astype(np.float32)
    if kind == "decaying":
        deviation = np.arange(1, d + 1, dtype=np.float32) ** -0.5
        rotation = np.linalg.qr(rng.normal(size=(d, d)).astype(np.float32))[0]
        x = (x * (deviation / np.sqrt((deviation**2).mean()))) @ rotation + rng.normal(size=d).astype(np.float32)
    signal = 2 * (x - x.mean(0)) @ rng.normal(size=d).astype(np.float32) / d**0.5
    return x, (signal + rng.logistic(size=n) > 0).astype(np.int32)


def vectors(sizes, kind: str):
    """The activations of all layers, with the labels of the first one."""
    import numpy as np

    from jax_interp.probes import LabelledTokens, Last, Vectors

    made = [rows(sizes, kind, layer) for layer in range(sizes["layers"])]
    n = sizes["examples"]
    mask = np.ones((n, 1), bool)
    data = LabelledTokens(kind, np.zeros((n, 1), np.int32), mask, mask, made[0][1], ("no", "yes"))
    on = Vectors(data, (Last(),), {f"blocks.{i}.resid_post": x[None] for i, (x, _) in enumerate(made)})
    return on, {f"layer {i}": y for i, (_, y) in enumerate(made)}


def ours(sizes):
    """The layers have labels of their own, so each layer is one call; all calls share one program."""
    import dataclasses

    import numpy as np

    from jax_interp.probes import MLP, Logistic, fit_probes

    for kind in KINDS:
        on, labels = vectors(sizes, kind)
        parts = [
            (dataclasses.replace(on, values={site: x}), {"own": y})
            for (site, x), y in zip(on.values.items(), labels.values(), strict=True)
        ]
        probe = Logistic(C=tuple(sizes["strengths"]))
        yield Work(kind, lambda parts=parts, probe=probe: [fit_probes(probe, x, labels=y) for x, y in parts])
    small = on.take(np.arange(256))
    small = dataclasses.replace(small, values={"x": next(iter(small.values.values()))[..., :64]})
    for seeds in (1, sizes["seeds"]):
        step = lambda seeds=seeds: fit_probes(MLP(), small, seeds=range(seeds))
        yield Work(f"MLP, {seeds} seeds", step, note="256 examples of width 64")


def scikit_learn(sizes):
    import warnings

    from sklearn.linear_model import LogisticRegression

    warnings.filterwarnings("ignore")

    def fit(x, y, tol):
        return [LogisticRegression(C=C, tol=tol, max_iter=10_000).fit(x, y) for C in sizes["strengths"]]

    for kind in KINDS:
        x, y = rows(sizes, kind, 0)
        yield Work(f"{kind}, default tolerance", lambda x=x, y=y: fit(x, y, 1e-4), note="one layer")
        wide = x.astype("float64")
        yield Work(f"{kind}, equal optimum", lambda x=wide, y=y: fit(x, y, TIGHT), note="one layer")


TIGHT = 1e-7  # with 1e-6 its weights are up to 6e-4 from the optimum (even rows, C up to 1)

WORKERS = {
    "ours": Worker(ours),
    "scikit-learn": Worker(scikit_learn, packages=("scikit-learn", "numpy", "scipy")),
}


def conclude(rounds: Rounds) -> list[str]:
    sizes = SMALL if "--tiny" in sys.argv else SIZES
    lines = []
    for kind in KINDS:
        for how in ("default tolerance", "equal optimum"):
            ratio = rounds.ratio(f"scikit-learn: {kind}, {how}", f"ours: {kind}")
            if ratio is not None:
                goal = " (to be at least 5)" if how == "equal optimum" else ""
                lines.append(f"{kind}: ours is {ratio * sizes['layers']:.1f} x scikit-learn at its {how}{goal}")
    ratio = rounds.ratio(f"ours: MLP, {sizes['seeds']} seeds", "ours: MLP, 1 seeds")
    if ratio is not None:
        lines.append(f"{sizes['seeds']} seeds of one MLP probe take {ratio:.1f} x one (to be at most 20)")
    return lines


def measure_optimum(sizes) -> None:
    """How far weights are from the optimum of float64, relative to the largest weight."""
    import time
    import warnings

    import jax
    import numpy as np
    from sklearn.linear_model import LogisticRegression

    from jax_interp.core.linear_models import fit_linear

    warnings.filterwarnings("ignore")
    strengths = np.asarray(sizes["strengths"], np.float32)
    print("| rows | C | ours | scikit-learn, default | scikit-learn, equal optimum |\n|---|---|---|---|---|")
    every = jax.jit(fit_linear)
    for kind in KINDS:
        x, y = rows(sizes, kind, 0)
        data = (x, np.tile(y, (len(strengths), 1)), np.ones((len(strengths), len(y)), np.float32), strengths)
        jax.block_until_ready(every(*data))
        start = time.perf_counter()
        fit = jax.block_until_ready(every(*data))
        seconds = {"ours": time.perf_counter() - start, "default": 0.0, "equal optimum": 0.0}
        for i, C in enumerate(strengths):
            exact = LogisticRegression(C=C, solver="newton-cholesky", tol=1e-12, max_iter=100)
            exact = exact.fit(x.astype(np.float64), y).coef_[0]
            far = lambda w, exact=exact: f"{np.abs(w - exact).max() / np.abs(exact).max():.1e}"
            cells = [f"{far(np.asarray(fit.weight[i, 0]))} ({int(fit.steps[i])} steps)"]
            for name, tol, dtype in (("default", 1e-4, np.float32), ("equal optimum", TIGHT, np.float64)):
                given = x.astype(dtype)
                start = time.perf_counter()
                found = LogisticRegression(C=C, tol=tol, max_iter=10_000).fit(given, y)
                seconds[name] += time.perf_counter() - start
                cells.append(f"{far(found.coef_[0])} ({found.n_iter_[0]} steps)")
            print(f"| {kind} | {C:g} | {' | '.join(cells)} |", flush=True)
        print(f"| {kind} | all, seconds | {' | '.join(f'{value:.2f}' for value in seconds.values())} |", flush=True)


if __name__ == "__main__":
    if "--optimum" in sys.argv:
        argparse.ArgumentParser(description=__doc__).add_argument("--optimum", action="store_true")
        measure_optimum(SMALL if "--tiny" in sys.argv else SIZES)
    else:
        main(__doc__, __file__, WORKERS, SIZES, SMALL, conclude)
