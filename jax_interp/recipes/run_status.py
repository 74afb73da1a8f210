"""Where a run stands, from its files alone. It imports no JAX, so it answers at once, also while the run goes on.

    status = read_status("runs/sae")
    status.step, status.steps, status.eta, status.life.says

It reads run directories of every command that trains, and saved passes over a text (`dashboard`). A damaged file costs
what it holds, and is named under `problems`.
"""

from __future__ import annotations

import contextlib
import os
import re
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from jax_interp.core.errors import UserError
from jax_interp.core.json_files import parse_json, read_json
from jax_interp.recipes.run_life import Life, life_of

TAIL = 1 << 18
"""How many bytes at the end of a log are read."""
KINDS = {
    "DictionaryRunConfig": "dictionary",
    "LanguageModelConfig": "language model",
    "DecompositionRunConfig": "decomposition",
    "TrainProbesConfig": "probes",
    "MonitorConfig": "monitor",
}
MARKS = ("config.json", "metrics.jsonl", "checkpoints", "heartbeat.json", "pass.safetensors")
"""What a run directory holds: at least one of these."""


class NotARun(UserError):
    """A path that is not a run directory."""


@dataclass(frozen=True)
class RunStatus:
    """What the files of a run say.

    name, kind, about: the directory, the kind of run, and what it trains in a few words.
    life: whether a process works on it, and how it ended.
    step: the last step whose metrics were finite. steps: the total number of steps.
    steps_per_second, rates: the speed of the last steps ("tokens/s", ...).
    eta: seconds until the last step. None if the run does not go on.
    elapsed: seconds since the process started, or that it took.
    checkpoint, checkpoint_age: the last checkpoint, and its age in seconds. checkpoints: how many there are.
    bytes: the size of the directory.
    record: the last record of the log. trend: the relative change of the loss over the last records.
    dead_share: the share of latents that are dead.
    rollbacks: what `rollbacks.json` says.
    evaluation: the main figures of the newest evaluation.
    problems: files that are damaged.
    """

    name: str
    kind: str
    about: str
    life: Life
    step: int | None = None
    steps: int | None = None
    steps_per_second: float | None = None
    rates: Mapping[str, float] = field(default_factory=dict)
    eta: float | None = None
    elapsed: float | None = None
    checkpoint: int | None = None
    checkpoint_age: float | None = None
    checkpoints: int = 0
    bytes: int = 0
    record: Mapping[str, Any] = field(default_factory=dict)
    trend: float | None = None
    dead_share: float | None = None
    rollbacks: tuple[Mapping[str, Any], ...] = ()
    evaluation: Mapping[str, float] = field(default_factory=dict)
    problems: tuple[str, ...] = ()


def is_run(directory: Path) -> bool:
    """Whether a directory holds a run or a saved pass."""
    return any((directory / name).exists() for name in MARKS)


def runs_at(path: Path) -> list[Path]:
    """The run directories that a path names: itself, or the runs in it.

    Raises:
      NotARun: there is none.
    """
    try:
        if is_run(path):
            return [path]
        inside = sorted(below for below in path.iterdir() if below.is_dir() and is_run(below))
    except OSError as error:
        raise NotARun(f"{path}: {error.strerror or error}") from error
    if not inside:
        raise NotARun(f"{path}: no run is here, and none in its folders")
    return inside


def read_status(path: Path | str, now: float | None = None) -> RunStatus:
    """Read the files of one run directory.

    Args:
      path: the run directory.
      now: the time; None: that of the clock.

    Raises:
      NotARun: the path is not a run directory.
    """
    directory, now = Path(path), time.time() if now is None else now
    if not is_run(directory):
        raise NotARun(f"{path}: no run is here")
    problems: list[str] = []
    config = _json(directory / "config.json", problems)
    beat = _heartbeat(directory, problems)
    records, timing = _tail(directory / "metrics.jsonl", problems), _tail(directory / "timing.jsonl", problems)
    speed = _speed(timing, float(beat["began"]) if beat else 0.0)
    life = life_of(directory, beat, steps_per_second=speed, now=now)
    steps_there, age = _checkpoints(directory / "checkpoints", now)
    total = beat["steps"] if beat else _total_steps(config)
    last = records[-1] if records else {}
    reached = [*([int(beat["step"])] if beat else []), *([int(last["step"])] if last else []), *steps_there]
    step = max(reached, default=None)
    left = None if step is None or total is None else total - step
    rolled = _json(directory / "rollbacks.json", problems).get("rollbacks", [])
    return RunStatus(
        name=str(path),
        kind=_kind(config, directory),
        about=_about(config),
        life=_without_heartbeat(life, directory, step, total),
        step=step,
        steps=total,
        steps_per_second=speed,
        rates={n: v for n, v in (timing[-1] if timing else {}).items() if n.endswith("/s") and n != "steps/s"},
        eta=left / speed if left and speed and life.state in ("running", "starting", "hung") else None,
        elapsed=None if beat is None else (now if life.goes_on else float(beat["written"])) - float(beat["began"]),
        checkpoint=steps_there[-1] if steps_there else None,
        checkpoint_age=age,
        checkpoints=len(steps_there),
        bytes=_size(directory),
        record=last,
        trend=_trend(records),
        dead_share=_dead_share(config, last),
        rollbacks=tuple(one for one in rolled if isinstance(one, dict)),
        evaluation=_evaluation(directory, problems),
        problems=tuple(problems),
    )


def _json(path: Path, problems: list[str]) -> dict[str, Any]:
    """A JSON object; empty if the file is missing or damaged."""
    if not path.exists():
        return {}
    try:
        return read_json(path, nonfinite=True)
    except UserError as error:
        problems.append(str(error))
        return {}


def _heartbeat(directory: Path, problems: list[str]) -> dict[str, Any] | None:
    values = _json(directory / "heartbeat.json", problems)
    if not values:
        return None
    needed = {"state": str, "process": int, "host": str, "step": int, "steps": int, "first_step": int, "doing": str}
    times = {"began": (int, float), "written": (int, float), "step_time": (int, float)}
    wrong = [name for name, kind in {**needed, **times}.items() if not isinstance(values.get(name), kind)]
    if wrong:
        problems.append(f"{directory / 'heartbeat.json'} lacks {', '.join(wrong)}")
        return None
    return values


def _tail(path: Path, problems: list[str]) -> list[dict[str, Any]]:
    """The last records of a log. An incomplete last line is left out."""
    try:
        with open(path, "rb") as file:
            size = file.seek(0, os.SEEK_END)
            file.seek(max(size - TAIL, 0))
            body = file.read()
    except FileNotFoundError:
        return []
    except OSError as error:
        problems.append(f"{path}: {error.strerror or error}")
        return []
    lines = body.split(b"\n")[1 if size > TAIL else 0 : -1]
    records = []
    for line in filter(None, lines):
        with contextlib.suppress(UserError):
            record = parse_json(line, str(path), nonfinite=True)
            if isinstance(record, dict) and isinstance(record.get("step"), int):
                records.append(record)
                continue
        problems.append(f"{path} has a line that is not a record: {line[:60].decode(errors='replace')}")
        break
    return records


def _speed(timing: list[dict[str, Any]], began: float) -> float | None:
    """Steps per second over the last twenty records of this process, with the saves and evaluations between them.

    If they have no times, it is the median of the last five speeds.
    """
    times = [(one["step"], one["time"]) for one in timing[-20:] if isinstance(one.get("time"), (int, float))]
    own = [one for one in times if one[1] >= began]
    if len(own) > 1 and own[-1][1] > own[0][1] and own[-1][0] > own[0][0]:
        return (own[-1][0] - own[0][0]) / (own[-1][1] - own[0][1])
    speeds = sorted(one["steps/s"] for one in timing[-5:] if isinstance(one.get("steps/s"), (int, float)))
    return speeds[len(speeds) // 2] if speeds else None


def _checkpoints(directory: Path, now: float) -> tuple[list[int], float | None]:
    """(the steps of the checkpoints, the age of the last one)."""
    try:
        steps = sorted(int(one.name) for one in directory.iterdir() if one.is_dir() and re.fullmatch(r"\d+", one.name))
        return steps, None if not steps else now - (directory / f"{steps[-1]:08d}").stat().st_mtime
    except OSError:
        return [], None


def _size(directory: Path) -> int:
    """The bytes of all files below a directory. Files that vanish meanwhile do not count."""
    size = 0
    for place, _, names in os.walk(directory):
        for name in names:
            with contextlib.suppress(OSError):
                size += os.lstat(os.path.join(place, name)).st_size
    return size


def _total_steps(config: Mapping[str, Any]) -> int | None:
    """The number of steps in a config. It is in the part that is trained, or in the config itself."""
    for part in (config, config.get("dictionary"), config.get("decomposition"), config.get("config")):
        if isinstance(part, Mapping) and isinstance(part.get("steps"), int):
            return part["steps"]
    return None


def _kind(config: Mapping[str, Any], directory: Path) -> str:
    if (directory / "pass.safetensors").exists() and not config:
        return "pass over a text"
    if config.get("sweep"):
        return "sweep of dictionaries"
    name = str(config.get("type", "run"))
    return KINDS.get(name, name)


def _about(config: Mapping[str, Any]) -> str:
    """What is trained: the activation and the address of a dictionary, the method of a decomposition, the model."""
    parts: list[str] = []
    trained = config.get("dictionary")
    if isinstance(trained, Mapping):
        activation = trained.get("activation")
        parts += [str(activation["type"])] if isinstance(activation, Mapping) and "type" in activation else []
        reads = trained.get("address", trained.get("reads"))
        parts += [reads if isinstance(reads, str) else ", ".join(map(str, reads or ()))]
    method = config.get("decomposition")
    parts += [str(method.get("type", ""))] if isinstance(method, Mapping) else []
    parts += [f"of {config[n]}" for n in ("model", "target") if isinstance(config.get(n), str)]
    return " ".join(filter(None, parts))


def _trend(records: list[dict[str, Any]]) -> float | None:
    """The relative change of the mean loss from the last but one to the last tenth of the records, at least three."""
    losses = [one["loss"] for one in records if isinstance(one.get("loss"), (int, float))]
    part = max(len(losses) // 10, 3)
    if len(losses) < 2 * part:
        return None
    before, after = sum(losses[-2 * part : -part]) / part, sum(losses[-part:]) / part
    return (after - before) / abs(before) if before else None


def _dead_share(config: Mapping[str, Any], record: Mapping[str, Any]) -> float | None:
    trained = config.get("dictionary")
    latents = trained.get("n_features") if isinstance(trained, Mapping) else None
    sources = len(trained["reads"]) if isinstance(trained, Mapping) and isinstance(trained.get("reads"), list) else 1
    dead = record.get("dead")
    return dead / (latents * sources) if isinstance(latents, int) and isinstance(dead, (int, float)) else None


def _evaluation(directory: Path, problems: list[str]) -> dict[str, float]:
    """The main figures of the newest `evaluation*.json`, or of the `results.json` of a language model."""
    numbered = lambda path: int(re.sub(r"\D", "", path.stem) or 1)
    found = sorted(directory.glob("evaluation*.json"), key=numbered)
    if found:
        values = _json(found[-1], problems)
        wanted = (
            ("reconstruction", "fvu"), ("reconstruction", "l0"), ("cross_entropy", "recovered_mean"),
            ("density", "dead"), ("faithfulness",), ("mmcs",),
        )  # fmt: skip
    else:
        values = _json(directory / "results.json", problems)
        wanted = (("validation", "loss"), ("validation", "bits_per_byte"))
    figures = {}
    for path in wanted:
        value: Any = values
        for name in path:
            value = value.get(name) if isinstance(value, Mapping) else None
        if isinstance(value, (int, float)):
            figures[path[-1]] = value
    return figures


def _without_heartbeat(life: Life, directory: Path, step: int | None, total: int | None) -> Life:
    """The state of a run without a heartbeat: of probes, of a saved pass, of an earlier version."""
    if life.state != "unknown":
        return life
    done = any((directory / name).exists() for name in ("report.json", "probes.json", "results.json", "features.html"))
    if done or (step is not None and step == total):
        return Life("finished", "finished")
    text = _pass(directory)
    return Life("stopped", text or "not finished, and no process works on it")


def _pass(directory: Path) -> str:
    """How far a saved pass over a text has come, from the header of its file."""
    try:
        with open(directory / "pass.safetensors", "rb") as file:
            size = int.from_bytes(file.read(8), "little")
            header = parse_json(file.read(size), "the header", nonfinite=True) if size < 1 << 26 else {}
        cursor = parse_json(header["__metadata__"]["pass"], "the pass", nonfinite=True)["cursor"]
        return f"saved after {cursor['sequences']:,} sequences ({cursor['kept']:,} positions); no process works on it"
    except (OSError, ValueError, KeyError, TypeError):
        return ""
