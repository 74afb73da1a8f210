"""Profiles of steps: what is asked for is written, the run is not changed, and nothing in a profile ends a run."""

from __future__ import annotations

from types import SimpleNamespace

import jax
import jax.numpy as jnp
import pytest
from same_bits import assert_same_bits

from jax_interp.core.errors import UserError
from jax_interp.training import QUIET, Log, fit, profiling
from jax_interp.training.profiling import operations, parse_range


@jax.jit
def step(state, batch):
    x = jnp.sort(state["x"] @ state["x"], axis=0)
    x = x / jnp.linalg.norm(x)
    return {"x": x}, {"loss": x.sum()}


def start():
    return {"x": jax.random.normal(jax.random.key(0), (200, 200))}


def test_a_profile_of_two_steps(tmp_path, capsys):
    state = fit(step, start(), steps=6, run=tmp_path, log=Log(profile=(3, 4)))
    assert_same_bits(state, fit(step, start(), steps=6, log=QUIET))
    place = tmp_path / "profile" / "steps-3-4"
    rows = {row.name: row for row in operations(place) if row.program == "jit_step"}
    sorts = [row for name, row in rows.items() if name.startswith("sort")]
    assert sum(row.count for row in sorts) >= 2  # one in each step; a thread can report a part of its own
    assert all(row.seconds > 0 for row in sorts)
    assert "sort" in (place / "operations.txt").read_text()
    said = capsys.readouterr().err
    assert str(place) in said
    assert "ms/step" in said


def test_a_file_asks_for_a_profile_of_a_run_that_goes_on(tmp_path, monkeypatch):
    monkeypatch.setattr(profiling, "LOOK", 0.0)

    def batch_at(i):
        if i == 3:
            (tmp_path / "profile-now").write_text("2\n")
        return i

    state = fit(step, start(), batch_at, steps=9, run=tmp_path, log=QUIET)
    assert_same_bits(state, fit(step, start(), steps=9, log=QUIET))
    assert [path.name for path in (tmp_path / "profile").iterdir()] == ["steps-5-6"]
    assert not (tmp_path / "profile-now").exists()


@pytest.mark.parametrize("asked", [(0, 3), (4, 3), (5, 7), (-1, 2)])
def test_steps_that_do_not_exist_are_refused(tmp_path, asked):
    with pytest.raises(UserError, match="give two steps from 1 to 6"):
        fit(step, start(), steps=6, run=tmp_path / "run", log=Log(profile=asked, quiet=True))
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("text", ["3-4", "..4", "a..b", "4..", "1..2..3", ""])
def test_text_that_is_no_range_is_refused(text):
    with pytest.raises(UserError, match="give two steps as A"):
        parse_range(text)
    assert (parse_range("11..15"), parse_range("7")) == ((11, 15), (7, 7))


def test_a_resumed_run_does_not_profile_again(tmp_path, capsys):
    fit(step, start(), steps=4, run=tmp_path, log=Log(profile=(2, 3), quiet=True))
    fit(step, start(), steps=6, run=tmp_path, log=Log(profile=(2, 3)))
    assert "steps 2 to 3 are done already" in capsys.readouterr().err


def test_what_goes_wrong_does_not_end_the_run(tmp_path):
    jax.profiler.start_trace(str(tmp_path / "own"))
    try:
        with pytest.warns(profiling.ProfileWarning, match="no profile of steps 2 to 3"):
            fit(step, start(), steps=4, run=tmp_path / "run", log=Log(profile=(2, 3), quiet=True))
    finally:
        jax.profiler.stop_trace()


def test_own_times_leave_out_what_runs_inside():
    event = lambda name, begin, length: SimpleNamespace(
        start_ns=begin, duration_ns=length, stats=[("hlo_op", name), ("hlo_module", "m")]
    )
    other = SimpleNamespace(start_ns=0, duration_ns=999, stats=[])
    events = [event("while", 0, 100), event("dot", 10, 30), event("add", 15, 5), event("dot", 50, 20), other]
    events.append(event("copy", 100, 7))
    found = sorted((name, round(seconds * 1e9)) for name, _, seconds in profiling._own_times(events))
    assert found == [("add", 5), ("copy", 7), ("dot", 20), ("dot", 25), ("while", 50)]
