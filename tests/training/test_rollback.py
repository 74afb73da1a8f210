"""Roll-backs after a NaN. The oracle of "skip" is a run that is fed the batches that remain."""

from __future__ import annotations

import os
import random
import shutil
import warnings

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from disk_trace import Trace, operations, write_image
from generated import drawn
from same_bits import assert_same_bits, bits
from tiny_run import TinyConfig, initial_state, make_step
from tiny_run import batch_at as clean_batch

from jax_interp.core.errors import UserError
from jax_interp.core.json_files import read_json
from jax_interp.training import QUIET, Log, NonFinite, OnNan, RollBackWarning, SaveTo, checkpoint, fit
from jax_interp.training.metrics import read_log

CONFIG, STEPS, EVERY = TinyConfig(width=4), 9, 3
STEP = make_step(CONFIG)
SKIP = OnNan("skip")


def planted(*bad):
    """The batches of the tiny run. Those with a number in `bad` are NaN."""
    clean = clean_batch(CONFIG)
    return lambda i: jnp.full_like(clean(i), jnp.nan) if i in bad else clean(i)


def run(directory, bad, policy=SKIP, every=EVERY, step=STEP, **kept):
    return fit(
        step,
        initial_state(CONFIG),
        planted(*bad),
        steps=STEPS,
        run=SaveTo(directory, CONFIG, every=every, **kept),
        log=Log(every=1, quiet=True, on_nan=policy),
    )


def fed(numbers):
    """The state after the batches with these numbers."""
    return fit(STEP, initial_state(CONFIG), lambda k: clean_batch(CONFIG)(numbers[k]), steps=STEPS, log=QUIET)


def test_skip_trains_on_the_batches_that_remain(tmp_path):
    with pytest.warns(RollBackWarning) as said:
        state = run(tmp_path, bad=(4, 10))
    # Batch 4 is in step 5: back to 3, and 3, 4 are left out. Steps 4 ... then see 5, 6, ...; batch 10 is in step 9:
    # back to step 6, and batches 8, 9, 10 are left out.
    assert_same_bits(state, fed([0, 1, 2, 5, 6, 7, 11, 12, 13]))
    assert "step 5: loss is nan; back to step 3, batches 3 to 4 are skipped" in str(said[0].message)
    assert "batches 8 to 10 are skipped (roll-back 2 of at most 3)" in str(said[1].message)
    assert [record["step"] for record in read_log(tmp_path / "metrics.jsonl")] == list(range(1, STEPS + 1))
    first, second = read_json(tmp_path / "rollbacks.json", nonfinite=True)["rollbacks"]
    assert (first["step"], first["to"], first["skipped"], first["quantity"]) == (5, 3, 2, "loss")
    assert [record["step"] for record in first["discarded"]] == [4]
    assert [record["step"] for record in second["discarded"]] == [7, 8]


def test_a_nan_before_the_first_checkpoint_leads_to_the_initial_state(tmp_path):
    with pytest.warns(RollBackWarning, match="back to step 0, batches 0 to 1 are skipped"):
        state = run(tmp_path, bad=(1,), every=None)
    assert_same_bits(state, fed(list(range(2, 2 + STEPS))))


def test_a_nan_in_a_skipped_stretch_is_skipped_as_well(tmp_path):
    with pytest.warns(RollBackWarning):
        state = run(tmp_path, bad=(4, 5, 7))
    assert_same_bits(state, fed([0, 1, 2, *range(8, 14)]))


def test_it_stops_after_so_many_times(tmp_path):
    bad = (4, 5, 6)
    with pytest.warns(RollBackWarning), pytest.raises(NonFinite, match="has had 2 roll-backs, and may have 2"):
        run(tmp_path, bad, OnNan("skip", times=2))
    with pytest.warns(RollBackWarning, match="roll-back 3 of at most 3"):
        state = run(tmp_path, bad, OnNan("skip", times=3))
    with pytest.warns(RollBackWarning):
        assert_same_bits(state, run(tmp_path / "at once", bad, OnNan("skip", times=3)))


def test_a_run_that_a_nan_stopped_goes_on_with_a_policy(tmp_path):
    with pytest.raises(NonFinite, match="step 5: loss is nan"):
        run(tmp_path, bad=(4,), policy=OnNan())
    with pytest.warns(RollBackWarning):
        state = run(tmp_path, bad=(4,))
    assert_same_bits(state, fed([0, 1, 2, *range(5, 11)]))


def test_a_child_continues_with_the_roll_backs_of_its_parent(tmp_path):
    with pytest.warns(RollBackWarning):
        whole = run(tmp_path / "parent", bad=(1,), keep=9)
    child = fit(
        STEP,
        initial_state(CONFIG),
        planted(1),
        steps=STEPS,
        run=SaveTo(tmp_path / "child", CONFIG, parent=f"{tmp_path / 'parent'}@6"),
        log=Log(every=1, quiet=True),
    )
    assert_same_bits(child, whole)
    assert (tmp_path / "child" / "metrics.jsonl").read_bytes() == (tmp_path / "parent" / "metrics.jsonl").read_bytes()


def test_batches_by_iterator_start_after_the_skipped_ones(tmp_path):
    count = lambda state, batch: ({"total": state["total"] + batch}, {"total": state["total"] + batch})
    source = lambda first: iter(np.where(np.arange(50) == 4, np.nan, np.arange(50)).astype(np.float32)[first:])
    with pytest.warns(RollBackWarning):
        state = fit(
            count, {"total": jnp.float32(0)}, steps=7, batches=source,
            run=SaveTo(tmp_path, every=2), log=Log(quiet=True, on_nan=SKIP),
        )  # fmt: skip
    assert float(state["total"]) == 0 + 1 + 2 + 3 + 5 + 6 + 7


def descend(state, number, rate_scale=1.0):
    """Gradient descent on x²/2 at the rate 3, which diverges. The loss is NaN beyond 100."""
    x = state["x"]
    loss = jnp.where(jnp.abs(x) > 100, jnp.nan, x * x / 2)
    return {"x": x - jnp.float32(3) * rate_scale * x}, {"loss": loss}


def test_lower_rate_makes_a_diverging_descent_converge(tmp_path):
    with pytest.warns(RollBackWarning, match=r"the learning rate is multiplied by 0\.25") as said:
        state = fit(
            descend, {"x": jnp.float32(1)}, steps=40,
            run=SaveTo(tmp_path, every=4), log=Log(quiet=True, on_nan=OnNan("lower-rate", factor=0.25)),
        )  # fmt: skip
    assert len(said) == 1
    x = np.float32(1)
    for k in range(1, 41):  # 2⁷ is over 100: step 8 fails, and what follows step 4 is at the rate .75
        x = x - np.float32(3 if k <= 4 else 0.75) * x
    assert float(state["x"]) == pytest.approx(float(x), rel=1e-6)


def test_what_cannot_be_rolled_back_is_refused(tmp_path):
    with pytest.raises(UserError, match="give a run directory"):
        fit(STEP, initial_state(CONFIG), planted(), steps=2, log=Log(quiet=True, on_nan=SKIP))
    with pytest.raises(UserError, match="cannot lower its learning rate"):
        run(tmp_path / "a", (), OnNan("lower-rate"))
    assert not (tmp_path / "a").exists()
    for wrong in ({"do": "ignore"}, {"times": 0}, {"factor": 1.0}):
        with pytest.raises(UserError, match="OnNan"):
            OnNan(**{"do": "skip"} | wrong)


def test_roll_backs_that_were_removed_or_edited_are_refused(tmp_path):
    with pytest.warns(RollBackWarning):
        run(tmp_path / "run", bad=(1,))
    (tmp_path / "run" / "rollbacks.json").unlink()
    with pytest.raises(UserError, match=r"rollbacks\.json is not the file that belongs to the checkpoint of step 9"):
        run(tmp_path / "run", bad=(1,))


def ends_like(directory, reference, state, bad) -> str:
    """Run once more. What differs from the undisturbed run afterwards, or ''."""
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        warnings.simplefilter("ignore", RollBackWarning)
        found = run(directory, bad, keep=2)
    if {n: v.tobytes() for n, v in bits(found).items()} != {n: v.tobytes() for n, v in bits(state).items()}:
        return "other bits"
    different = [
        name
        for name in ("metrics.jsonl", "rollbacks.json")
        if (directory / name).read_bytes() != (reference / name).read_bytes()
    ]
    return f"other {different}" if different else ""


@pytest.mark.hardening
@pytest.mark.filterwarnings("ignore::jax_interp.training.RollBackWarning")
@pytest.mark.parametrize("stop", ["kill", "eager", "lazy"])
def test_a_run_with_roll_backs_goes_on_from_what_any_stop_leaves(tmp_path, tally, stop):
    """`kill` is SIGKILL before any operation on files. `eager` and `lazy` are power cuts, see disk_trace."""
    seed = int(os.environ.get("JAX_INTERP_SEED", random.SystemRandom().randrange(1 << 30)))
    print(f"seed {seed}")
    rng, bad = random.Random(seed), (4, 8)
    state = run(tmp_path / "whole", bad, keep=2)
    (tmp_path / "disk").mkdir()
    trace = Trace(tmp_path / "disk")
    with operations(trace):
        run(tmp_path / "disk" / "run", bad, keep=2)
    images = trace.images[stop]
    different = [k for k in range(len(images)) if k == 0 or images[k] != images[k - 1]]
    outcomes = {}
    for k in sorted(rng.sample(different, min(len(different), drawn(3, 150)))):
        place = tmp_path / f"image{k}"
        write_image(images[k], place)
        outcomes[k] = ends_like(place / "run", tmp_path / "whole", state, bad)
        shutil.rmtree(place)
    broken = {k: outcome for k, outcome in outcomes.items() if outcome}
    tally(f"runs with roll-backs: {stop} at any operation", tried=len(outcomes), broken=len(broken))
    assert not broken, broken


def test_the_policy_changes_no_bit_without_a_nan(tmp_path):
    assert_same_bits(run(tmp_path / "skip", ()), fed(list(range(STEPS))))
    assert checkpoint.steps(tmp_path / "skip" / "checkpoints") == [3, 6, 9]
    plain = fit(descend, {"x": jnp.float32(1)}, steps=4, log=QUIET)
    log = Log(quiet=True, on_nan=OnNan("lower-rate"))
    assert_same_bits(plain, fit(descend, {"x": jnp.float32(1)}, steps=4, run=tmp_path / "rate", log=log))
    assert jax.tree.structure(plain) == jax.tree.structure({"x": 0})
