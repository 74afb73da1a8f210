"""Laws of a run: however it is stopped, the same call ends with the same bits and the same log, or is refused by name.

Every case is drawn: the moment of the stop, the operation that fails, the byte that is cut.
"""

from __future__ import annotations

import dataclasses
import errno
import json
import os
import random
import shutil
import signal
import warnings
from pathlib import Path
from types import SimpleNamespace

import jax
import pytest
from disk_trace import Trace, operations, write_image
from generated import drawn
from same_bits import bits
from tiny_run import TinyConfig, batch_at, initial_state, make_step

from jax_interp.core.errors import UserError
from jax_interp.core.json_files import read_json
from jax_interp.training import Interrupted, Log, ResumeWarning, SaveTo, StorageError, checkpoint, fit, interrupt

CONFIG, STEPS, EVERY = TinyConfig(width=4), 6, 2
STEP = make_step(CONFIG)


def run(directory, config=CONFIG, batch=None, evaluate=lambda state: {"b": state["params"]["b"].sum()}, step=STEP):
    """The call that all cases repeat."""
    return fit(
        step,
        initial_state(config),
        batch or batch_at(config),
        steps=STEPS,
        run=SaveTo(directory, config, every=EVERY, keep=2),
        log=Log(every=1, quiet=True, evaluate=evaluate, evaluate_every=2),
    )


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """The directory of a run that nothing disturbed, and its last state."""
    directory = tmp_path_factory.mktemp("runs") / "run"
    return directory, run(directory)


@pytest.fixture
def rng(request):
    seed = int(os.environ.get("JAX_INTERP_SEED", random.SystemRandom().randrange(1 << 30)))
    print(f"seed {seed}; JAX_INTERP_SEED={seed} draws the same cases")
    return random.Random(seed)


def ends_like(directory, whole) -> str:
    """Run once more. What differs from the undisturbed run afterwards, or ''."""
    reference, state = whole
    try:
        found = run(directory)
    except UserError as error:
        return f"refused: {error}"
    same = {name: value.tobytes() for name, value in bits(found).items()}
    if same != {name: value.tobytes() for name, value in bits(state).items()}:
        return "other bits"
    if (directory / "metrics.jsonl").read_bytes() != (reference / "metrics.jsonl").read_bytes():
        return "another log"
    hidden = [path.name for path in (directory / "checkpoints").glob(".*")]
    return f"{hidden} is left" if hidden else ""


def report(tally, law, outcomes: dict[object, str]):
    broken = {case: outcome for case, outcome in outcomes.items() if outcome}
    tally(law, tried=len(outcomes), broken=len(broken))
    assert not broken, broken


@pytest.mark.hardening
@pytest.mark.parametrize("stop", ["kill", "eager", "lazy"])
def test_a_run_goes_on_from_what_any_stop_leaves(tmp_path, whole, rng, tally, stop):
    """`kill` is SIGKILL before any operation on files. `eager` and `lazy` are power cuts, see disk_trace."""
    (tmp_path / "disk").mkdir()
    trace = Trace(tmp_path / "disk")
    with operations(trace):
        run(tmp_path / "disk" / "run")
        os.fsync(os.open(tmp_path / "disk", os.O_RDONLY))  # one more moment: after the end
    images = trace.images[stop]
    assert "run/checkpoints/00000006/leaves.json" in images[-1], "the last step is on the disk when the call returns"
    different = [k for k in range(len(images)) if k == 0 or images[k] != images[k - 1]]
    outcomes = {}
    for k in sorted(rng.sample(different, min(len(different), drawn(12, 60)))):
        place = tmp_path / f"image{k}"
        write_image(images[k], place)
        with warnings.catch_warnings():
            warnings.simplefilter("error")  # a step that is damaged would be one
            outcomes[k] = ends_like(place / "run", whole)
        shutil.rmtree(place)
    name = {"kill": "SIGKILL at any operation", "eager": "power cut, names kept", "lazy": "power cut, names lost"}[stop]
    report(tally, f"runs: {name}", outcomes)


@pytest.mark.hardening
def test_a_write_that_fails_is_named_and_leaves_the_earlier_steps(tmp_path, whole, rng, tally):
    codes = (errno.ENOSPC, errno.EMFILE, errno.EROFS, errno.EDQUOT, errno.EIO)
    changing = ("open", "os.mkdir", "os.rename", "fsync")
    seen: list[str] = []
    with operations(lambda event, path: seen.append(event) if event in changing else None):
        run(tmp_path / "counted")
    outcomes = {}
    for at in rng.sample(range(len(seen)), drawn(12, 60)):
        code, place, left = rng.choice(codes), tmp_path / f"at{at}", [at]

        def fail(event, path, code=code, place=place, left=left):
            if event in changing and path.startswith(str(place)):
                left[0] -= 1
                if left[0] < 0:
                    raise OSError(code, os.strerror(code), path)

        case = (at, seen[at], errno.errorcode[code])
        try:
            with operations(fail):
                run(place)
        except UserError as error:
            one_line = os.strerror(code) in str(error) and "\n" not in str(error)
            outcomes[case] = "" if one_line else f"said {error}"
        except BaseException as error:
            outcomes[case] = f"{type(error).__name__}: {error}"
        outcomes[case] = outcomes.get(case, "") or ends_like(place, whole)
    report(tally, "runs: a write fails (disk full, too many files, read-only)", outcomes)


@pytest.mark.hardening
@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")  # of threads that orbax left behind
def test_a_disk_that_is_full_for_the_arrays(tmp_path, whole, rng, tally):
    """The arrays are written in C++, where only a limit of the process can make a write fail."""
    resource = pytest.importorskip("resource", reason="limits of a process are POSIX")
    before, outcomes = resource.getrlimit(resource.RLIMIT_FSIZE), {}
    signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    for k in range(drawn(4, 16)):
        step, size, place = rng.randrange(STEPS), rng.randrange(1, 2000), tmp_path / f"case{k}"

        def batch(i, step=step, size=size):
            if i == step:
                resource.setrlimit(resource.RLIMIT_FSIZE, (size, before[1]))
            return batch_at(CONFIG)(i)

        try:
            run(place, batch=batch)
            outcomes[k, step, size] = ""
        except StorageError as error:
            outcomes[k, step, size] = "" if "ulimit -f" in str(error) else str(error)
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, before)
        outcomes[k, step, size] = outcomes[k, step, size] or ends_like(place, whole)
    report(tally, "runs: no room for the arrays", outcomes)


@pytest.mark.hardening
def test_a_signal_at_any_moment_stops_the_run(tmp_path, whole, rng, tally, monkeypatch):
    write_arrays = checkpoint.write_arrays
    outcomes = {}
    for k in range(drawn(8, 40)):
        moment, step = rng.choice(["batch", "evaluation", "save", "compilation"]), rng.randrange(1, STEPS + 1)
        signum, place = rng.choice([signal.SIGINT, signal.SIGTERM]), tmp_path / f"case{k}"
        counts = dict.fromkeys(("batch", "evaluation", "save", "compilation"), 0)
        due = {"batch": step, "evaluation": (step + 1) // 2, "save": (step + 1) // 2, "compilation": 1}[moment]

        def press(now, moment=moment, due=due, signum=signum, counts=counts):
            counts[now] += 1
            if now == moment and counts[now] == due:
                os.kill(os.getpid(), signum)

        def batch(i, press=press):
            press("batch")
            return batch_at(CONFIG)(i)

        def evaluate(state, press=press):
            press("evaluation")
            return {"b": state["params"]["b"].sum()}

        def save(path, arrays, press=press):
            press("save")
            write_arrays(path, arrays)

        def traced(state, batch, press=press):
            press("compilation")
            return STEP(state, batch)

        monkeypatch.setattr(checkpoint, "write_arrays", save)
        compiled = jax.jit(traced, donate_argnums=0) if moment == "compilation" else STEP
        case = (moment, step, signal.Signals(signum).name)
        try:
            run(place, batch=batch, evaluate=evaluate, step=compiled)
            outcomes[case] = "it was not stopped"
        except Interrupted as stopped:
            right = stopped.exit_code == 128 + signum and f"{place}; run the same command again" in str(stopped)
            outcomes[case] = "" if right else str(stopped)
        monkeypatch.setattr(checkpoint, "write_arrays", write_arrays)
        outcomes[case] = outcomes[case] or ends_like(place, whole)
    report(tally, "runs: Ctrl-C or SIGTERM in any step", outcomes)


def test_a_second_signal_stops_at_once(tmp_path, whole, monkeypatch):
    def batch(i):
        if i == 3:
            signal.raise_signal(signal.SIGINT)
        return batch_at(CONFIG)(i)

    # The second signal comes right after the first was noted: a moment later, the run may have stopped already.
    again = SimpleNamespace(write=lambda *_: signal.raise_signal(signal.SIGINT))
    monkeypatch.setattr(interrupt, "os", again)
    before = signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell's background job ignores Ctrl-C
    try:
        with pytest.raises(KeyboardInterrupt):
            run(tmp_path / "run", batch=batch)
    finally:
        signal.signal(signal.SIGINT, before)
    monkeypatch.undo()
    assert (checkpoint.latest(tmp_path / "run" / "checkpoints") or 0) <= 2
    assert ends_like(tmp_path / "run", whole) == ""


@pytest.mark.hardening
def test_a_second_writer_is_refused_at_any_step(tmp_path, whole, rng, tally):
    outcomes = {}
    for k in range(drawn(3, 12)):
        step, place = rng.randrange(1, STEPS), tmp_path / f"case{k}"

        def batch(i, step=step, place=place, k=k):
            if i == step:
                try:
                    run(place)
                    outcomes[k, step] = "it was not refused"
                except UserError as error:
                    outcomes[k, step] = "" if f"process {os.getpid()} works on the run" in str(error) else str(error)
            return batch_at(CONFIG)(i)

        run(place, batch=batch)
        outcomes[k, step] = outcomes[k, step] or ends_like(place, whole)
    report(tally, "runs: two writers", outcomes)


@pytest.mark.hardening
def test_a_log_that_was_cut_or_changed_is_refused_by_name(tmp_path, whole, rng, tally):
    outcomes = {}
    content = (whole[0] / "metrics.jsonl").read_bytes()
    place = shutil.copytree(whole[0], tmp_path / "run")
    log = place / "metrics.jsonl"
    for _ in range(drawn(30, 200)):
        at, how = rng.randrange(len(content)), rng.choice(["cut", "flipped", "longer"])
        changed = bytes([content[at] ^ 1 << rng.randrange(8)])
        kinds = {"cut": b"", "flipped": changed + content[at + 1 :], "longer": content[at:] + content[:at]}
        log.write_bytes(content[:at] + kinds[how])
        outcome = ends_like(place, whole)
        refused = outcome.startswith("refused") and str(log) in outcome and "--from" in outcome
        outcomes[how, at] = "" if (outcome == "" if how == "longer" else refused) else outcome or "accepted"
    report(tally, "runs: log cut, changed or longer", outcomes)


@pytest.mark.hardening
def test_an_edited_config_is_refused_by_field(tmp_path, whole, rng, tally):
    outcomes = {}
    place = shutil.copytree(whole[0], tmp_path / "run")
    for k in range(drawn(6, 30)):
        name = rng.choice([field.name for field in dataclasses.fields(CONFIG)])
        old = getattr(CONFIG, name)
        new = type(old)(old * rng.uniform(2, 9))
        edited = dataclasses.replace(CONFIG, **{name: new})
        gone = rng.random() < 0.5
        values = read_json(whole[0] / "config.json")
        (place / "config.json").write_text(json.dumps(values | {name: new}))
        if gone:
            (place / "config.json").unlink()
        try:
            run(place, edited)
            outcomes[k, name, new] = "accepted"
        except UserError as error:
            outcomes[k, name, new] = "" if f"{name}: {old} -> {new}" in str(error) else str(error)
    (place / "config.json").unlink(missing_ok=True)
    outcomes["its own config"] = ends_like(place, whole)
    report(tally, "runs: config edited or removed", outcomes)


@pytest.mark.hardening
def test_other_versions_are_one_warning_with_the_same_bits(tmp_path, whole, rng, tally, monkeypatch):
    from jax_interp.training.provenance import versions

    def interrupting(i):
        if i == 3:
            os.kill(os.getpid(), signal.SIGINT)
        return batch_at(CONFIG)(i)

    outcomes = {}
    for k in range(drawn(3, 12)):
        place = Path(tmp_path / f"case{k}")
        with pytest.raises(Interrupted):
            run(place, batch=interrupting)
        name = rng.choice(list(versions()))
        monkeypatch.setattr("jax_interp.training.runs.versions", lambda name=name: versions() | {name: "other"})
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            outcome = ends_like(place, whole)
        said = [str(w.message) for w in caught if issubclass(w.category, ResumeWarning)]
        right = len(said) == 1 and f"{name} {versions()[name]} -> other" in said[0]
        outcomes[k, name] = outcome if right else f"warned {said}"
        monkeypatch.undo()
    report(tally, "runs: other versions or cores", outcomes)
