"""The loop: what stops it, what it writes, what it leaves alone."""

from __future__ import annotations

import itertools
import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jax_interp.core.errors import UserError
from jax_interp.core.json_files import read_json
from jax_interp.training import QUIET, Log, NonFinite, SaveTo, checkpoint, fit, open_run
from jax_interp.training.metrics import read_log


def count(state, batch):
    """Adds the batches up: after n steps of batches 0, 1, ... the sum is n(n-1)/2."""
    total = state["total"] + jnp.asarray(batch, jnp.float32)
    return {"total": total, "steps": state["steps"] + 1}, {"total": total, "norms": {"batch": jnp.float32(batch)}}


START = {"total": 0.0, "steps": 0}


def test_closed_form_and_the_log(tmp_path):
    seen = []
    state = fit(
        count,
        START,
        lambda k: np.float32(k),
        steps=7,
        run=tmp_path,
        log=Log(every=3, per_step={"tokens": 100}, on_record=seen.append, quiet=True),
    )
    assert float(state["total"]) == 21.0
    assert int(state["steps"]) == 7
    expected = [{"step": k, "total": k * (k - 1) / 2, "norms.batch": float(k - 1)} for k in (3, 6, 7)]
    assert read_log(tmp_path / "metrics.jsonl") == seen == expected
    timing = read_log(tmp_path / "timing.jsonl")
    assert [record["step"] for record in timing] == [3, 6, 7]
    assert all(record["tokens/s"] == pytest.approx(100 * record["steps/s"]) for record in timing)
    assert checkpoint.steps(tmp_path / "checkpoints") == [7]


def test_batches_by_iterator_or_by_number(tmp_path):
    by_iterator = fit(count, START, steps=5, run=tmp_path, batches=itertools.count, log=QUIET)
    again = fit(count, START, steps=9, run=tmp_path, batches=itertools.count, log=QUIET)  # goes on with 5
    assert float(by_iterator["total"]) == 10.0
    assert float(again["total"]) == float(fit(count, START, steps=9, log=QUIET)["total"]) == 36.0


def test_the_caller_keeps_its_arrays():
    start = {"total": jnp.float32(0), "steps": jnp.int32(0)}
    fit(count, start, steps=2, log=QUIET)
    assert float(start["total"]) == 0.0


def test_frozen_trees_reach_the_step_and_are_not_saved(tmp_path):
    model = {"w": jnp.arange(3.0)}

    def step(state, batch, model):
        return {"x": state["x"] + model["w"].sum()}, {"x": state["x"]}

    state = fit(
        step,
        {"x": jnp.float32(0)},
        steps=4,
        run=tmp_path,
        frozen=(model,),
        log=Log(evaluate=lambda state, model: {"ratio": state["x"] / model["w"].sum()}, evaluate_every=2, quiet=True),
    )
    assert float(state["x"]) == 12.0
    assert float(model["w"].sum()) == 3.0
    assert list(checkpoint.describe(tmp_path / "checkpoints" / "00000004")) == ["x"]
    assert [(r["step"], r["eval.ratio"]) for r in read_log(tmp_path / "metrics.jsonl")] == [(2, 2.0), (4, 4.0)]


def test_one_compile():
    calls = []

    def step(state, batch):
        calls.append(1)
        return {"n": state["n"] + 1}, {}

    fit(step, {"n": 0}, lambda k: np.ones(2), steps=5, log=QUIET)
    assert len(calls) == 1


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("checkpoint_every", [1, 4])
def test_a_bad_metric_stops_the_run_and_nothing_of_it_is_saved(tmp_path, bad, checkpoint_every):
    def step(state, batch):
        aux = jnp.where(batch == 9, jnp.float32(bad), jnp.float32(1))  # batch 9 is step 10
        return {"x": state["x"] + aux}, {"loss": {"mse": jnp.float32(2), "aux": aux}}

    with pytest.raises(NonFinite, match=r"step 10: loss\.aux is -?(nan|inf)\. The checkpoint of step [89]") as stopped:
        fit(
            step,
            {"x": jnp.float32(0)},
            steps=50,
            run=SaveTo(tmp_path, every=checkpoint_every),
            log=Log(every=1, quiet=True),
        )
    assert (stopped.value.step, stopped.value.quantity) == (10, "loss.aux")
    good = 9 if checkpoint_every == 1 else 8
    state, step_of = checkpoint.restore(tmp_path / "checkpoints", {"x": jnp.float32(0)})
    assert (step_of, float(state["x"])) == (good, float(good))
    assert [record["step"] for record in read_log(tmp_path / "metrics.jsonl")] == list(range(1, 10))


def test_a_state_with_nan_is_not_saved_though_the_metrics_are_fine(tmp_path):
    def step(state, batch):
        w = jnp.where(batch == 5, jnp.float32(np.nan), state["opt"]["mu"])  # the metrics would show it a step later
        return {"opt": {"mu": w}}, {"loss": jnp.float32(1)}

    with pytest.raises(NonFinite, match=r"step 6: state opt\.mu is NaN\. The checkpoint of step 4"):
        fit(step, {"opt": {"mu": jnp.ones(3)}}, steps=50, run=SaveTo(tmp_path, every=2), log=QUIET)
    assert checkpoint.latest(tmp_path / "checkpoints") == 4


def test_no_run_directory_names_no_checkpoint():
    nan_from = lambda first: lambda s, b: (s, {"loss": jnp.where(b >= first, jnp.float32(np.nan), jnp.float32(1))})
    with pytest.raises(NonFinite, match=r"step 2: loss is nan\. Nothing was saved; lower the learning rate"):
        fit(nan_from(1), {"x": jnp.zeros(2)}, steps=3, log=QUIET)
    with pytest.raises(NonFinite, match=r"step 1: loss is nan\. The state had not been updated yet"):
        fit(nan_from(0), {"x": jnp.zeros(2)}, steps=3, log=QUIET)


def test_mistakes_of_the_caller(tmp_path):
    with pytest.raises(UserError, match=r"Log\(every=0\): give a positive number of steps, or None for the default"):
        Log(every=0)
    with pytest.raises(UserError, match=r"Log\(evaluate_every=0\): give a positive number of steps, or None for never"):
        Log(evaluate_every=0)
    with pytest.raises(UserError, match=r"SaveTo\(every=0\): give a positive number of steps, or None for never"):
        SaveTo("run", every=0)
    with pytest.raises(UserError, match=r"steps=0: give a positive number of steps$"):
        fit(count, START, steps=0)
    with pytest.raises(UserError, match="the batches ended before step 4 of 9"):
        fit(count, START, steps=9, batches=lambda start: iter(range(start, 3)), log=QUIET)
    with pytest.raises(UserError, match="a metric cannot be named 'step'"):
        fit(lambda s, b: (s, {"step": b}), {"x": jnp.zeros(2)}, steps=2, log=QUIET)


def test_the_config_of_an_open_run_stands(tmp_path):
    with open_run(tmp_path, {"width": 3}) as run:
        assert fit(count, START, steps=1, run=SaveTo(run, {"width": 4}), log=QUIET)["steps"] == 1
    assert read_json(tmp_path / "config.json") == {"width": 3}


def test_a_resume_says_where_it_goes_on(tmp_path, capsys):
    fit(count, START, steps=2, run=tmp_path, log=QUIET)
    assert capsys.readouterr().err == ""
    fit(count, START, steps=4, run=tmp_path)
    assert f"train: resuming after step 2 of 4, from {tmp_path}" in capsys.readouterr().err


def test_a_run_that_is_past_the_steps_asked_for_is_refused_and_left_as_it_is(tmp_path):
    finished = fit(count, START, steps=5, run=tmp_path, log=Log(every=1, quiet=True))
    log = (tmp_path / "metrics.jsonl").read_bytes()
    with pytest.raises(UserError, match=r"trained for 5 steps, more than steps=4: ask for at least 5, or choose"):
        fit(count, START, steps=4, run=tmp_path, log=QUIET)
    assert (tmp_path / "metrics.jsonl").read_bytes() == log
    again = fit(count, START, steps=5, run=tmp_path, log=QUIET)
    assert float(again["total"]) == float(finished["total"]) == 10.0


def test_plain_lines_when_not_a_terminal(capsys):
    fit(
        count, START, lambda k: np.float32(k), steps=20, log=Log(shown=("total",), per_step={"tokens": 10}, title="sum")
    )
    first, *_, last = capsys.readouterr().err.splitlines()
    assert first.startswith("sum ")
    assert "ETA" in first
    assert last.startswith("sum 20/20  total 190  tokens/s ")
    assert "took" in last


def test_the_log_is_exact_json(tmp_path):
    value = np.float32(0.1)
    fit(
        lambda s, b: (s, {"loss": jnp.float32(0.1), "half": jnp.bfloat16(1.5), "hist": jnp.arange(3)}),
        {"x": jnp.zeros(2)},
        steps=1,
        run=tmp_path,
        log=QUIET,
    )
    record = json.loads((tmp_path / "metrics.jsonl").read_text())
    assert np.float32(record["loss"]) == value
    assert record["half"] == 1.5
    assert record["hist"] == [0, 1, 2]


def test_sharded_state_stays_where_the_template_is(tmp_path):
    from jax_interp.training.sharding import make_mesh, shard

    rules = (("w", jax.P("fsdp")), ("**", jax.P()))
    step = lambda s, b: ({"w": s["w"] * jnp.float32(2), "n": s["n"] + 1}, {"n": s["n"]})
    start = {"w": jnp.arange(8.0), "n": jnp.int32(0)}
    on_eight = shard(start, rules, make_mesh(fsdp=8))
    on_two = shard(start, rules, make_mesh(fsdp=2))
    fit(step, on_eight, steps=3, run=tmp_path, log=QUIET)
    state = fit(step, on_two, steps=6, run=tmp_path, log=QUIET)  # another mesh takes the run up
    assert len(state["w"].sharding.device_set) == 2
    np.testing.assert_array_equal(state["w"], np.arange(8.0) * 64)
