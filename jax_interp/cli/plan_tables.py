"""The plan of a run as tables on the terminal."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from jax_interp.training.planning.plan import TEMPORARIES, Plan
from jax_interp.views.tables import print_table

MEANING = {
    "model": "the model whose values are read",
    "trained": "what is trained",
    "optimizer": "its moments",
    "buffer": "activations that are shuffled",
    "state": "counters, statistics, keys",
    "batch": "one batch of tokens",
    TEMPORARIES: "activations and gradients of a step, at the peak (an estimate)",
}


def print_plan(plan: Plan, *, title: str) -> None:
    """Print one page: memory of a device, work of a step, time of the run."""
    available = plan.available
    rows = [(kind, size_text(size), MEANING.get(kind, "")) for kind, size in plan.memory.items()]
    share = "" if available is None else f"{100 * plan.bytes / available:.0f} % of {size_text(available)}"
    rows.append(("total", size_text(plan.bytes), share))
    right = ("", "right")
    print_table([f"memory of one {plan.device.name}", right, ""], rows, title=title)
    print_table(["work of a step, on one device", right, ""], _work_rows(plan))
    print_table(["time", right, ""], _time_rows(plan))


def _work_rows(plan: Plan) -> list[tuple[str, str, str]]:
    costs = plan.costs
    rows = [(f"products in {dtype}", f"{number_text(flops)}FLOP", "") for dtype, flops in costs.products.items()]
    rows.append(("other operations", f"{number_text(costs.other_flops)}FLOP", ""))
    rows.append(("memory traffic", size_text(costs.traffic), "reads and writes"))
    for axes, size in costs.bytes_over().items():
        kinds = [f"{one.count:,} {one.kind}" for one in costs.exchanges if one.axes == axes]
        rows.append((f"sent over {'+'.join(axes)}", size_text(size), ", ".join(kinds)))
    return rows


def _time_rows(plan: Plan) -> list[tuple[str, str, str]]:
    time, (low, high) = plan.time, plan.hours
    reached = f"at {100 * plan.efficiency:.0f} % of the peak"
    rows = [("compute", seconds_text(time.compute), reached), ("memory", seconds_text(time.memory), reached)]
    for axes, seconds in time.network.items():
        rows.append((f"network, {'+'.join(axes)}", seconds_text(seconds), reached))
    many = f"{plan.steps:,} steps of {plan.tokens:,} tokens"
    hours = lambda value: f"{value:,.2f} h" if value >= 0.1 else f"{60 * value:,.1f} min"
    total = lambda value: hours(value * plan.devices)
    return [
        *rows,
        (
            "step",
            f"{seconds_text(time.overlapped)} to {seconds_text(time.in_turn)}",
            f"bound by {time.bound}; the network overlaps with the rest, or does not",
        ),
        ("run", f"{hours(low)} to {hours(high)}", many),
        ("device-hours", f"{total(low)} to {total(high)}", f"on {plan.devices:,} devices"),
    ]


def print_compiled(measured: Mapping[str, Any], plan: Plan) -> None:
    """Print what XLA needs for the compiled program, beside the plan."""
    sent: dict[str, float] = {"+".join(axes): size for axes, size in plan.costs.bytes_over().items()}
    of_plan = {"arguments": plan.bytes - plan.memory[TEMPORARIES], TEMPORARIES: plan.memory[TEMPORARIES]}
    of_xla = {"arguments": measured["argument_bytes"], TEMPORARIES: measured["other_bytes"]}
    of_plan["total"], of_xla["total"] = plan.bytes, measured["total_bytes"]
    over = {f"sent over {axes}": (sent.get(axes, 0), size) for axes, size in measured["sent_bytes"].items()}
    rows = [(name, size_text(of_plan[name]), size_text(of_xla[name])) for name in of_plan]
    rows += [(name, size_text(ours), size_text(theirs)) for name, (ours, theirs) in over.items()]
    print_table(["compiled for simulated devices", ("plan", "right"), ("XLA on a CPU", "right")], rows)


def print_remedies(rows: Sequence[tuple[str, Plan]]) -> None:
    """Print the changes after which a run fits."""
    of_plan = lambda plan: (size_text(plan.bytes), seconds_text(plan.time.in_turn), f"{plan.devices:,}")
    columns = ["fits with", *((name, "right") for name in ("memory of a device", "step", "devices"))]
    print_table(columns, [(change, *of_plan(plan)) for change, plan in rows])


def size_text(size: float) -> str:
    """A number of bytes: "1.50 GB"."""
    return f"{number_text(size)}B"


def number_text(value: float) -> str:
    """A number with a unit prefix: "1.50 G"."""
    for limit, prefix in ((1e15, "P"), (1e12, "T"), (1e9, "G"), (1e6, "M"), (1e3, "k")):
        if value >= limit:
            return f"{value / limit:.3g} {prefix}"
    return f"{value:.3g} "


def seconds_text(seconds: float) -> str:
    """A time: "12 ms"."""
    if seconds >= 1:
        return f"{seconds:.3g} s"
    return f"{1e3 * seconds:.3g} ms" if seconds >= 1e-3 else f"{1e6 * seconds:.3g} µs"
