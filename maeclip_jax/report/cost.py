"""What a run cost: time by phase, chip-hours, throughput, MFU, memory, each marked as measured or computed."""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from maeclip_jax.parallel import chips
from maeclip_jax.report.run import Run, number

# Phase of the clock -> what to call it. Waiting for input is a part of the training time.
PHASES = {
    "steps": "training steps",
    "input_wait": "waiting for input",
    "compile": "compiling",
    "restore": "restoring",
    "checkpoint": "checkpoints",
    "eval": "evaluation",
}
NOT_SPENT = ("input_wait", "slept")  # a part of another phase; time in which the machine slept


def view(run: Run) -> dict[str, Any]:
    """`rows`: (what, value, how it is known); `shares`: (phase, seconds, percent); `notes`: formulas in words."""
    costs, rows, notes = run.costs, [], []

    def row(what: str, value: Any, text: str, known: str = "measured") -> None:
        if number(value):
            rows.append((what, text, known))

    seconds = {k: v for k, v in (costs.get("seconds") or {}).items() if number(v)}
    total, shares = sum(v for k, v in seconds.items() if k not in NOT_SPENT), []
    devices, kind = costs.get("devices"), costs.get("device_kind", "device")
    if total > 0:
        wait = min(seconds.get("input_wait", 0.0), seconds.get("train", 0.0))
        parts = {**seconds, "steps": seconds.get("train", 0.0) - wait, "input_wait": wait}
        shares = [(label, parts[k], 100 * parts[k] / total) for k, label in PHASES.items() if parts.get(k, 0) > 0]
        row("time, restarts included", total, duration(total))
        if devices:
            hours, last = chip_hours(run), total / 3600 * chips.count(devices, kind)
            once = math.isclose(hours, last, rel_tol=1e-3)
            row("chip-hours", hours, f"{hours:.3g} ({'' if once else 'at last '}{devices} × {kind})")
    if seconds.get("slept"):
        row("time asleep, left out of all others", seconds["slept"], duration(seconds["slept"]))
    per_chip = median(run, "perf/img_per_sec_per_chip")
    row("images per second", *_text(median(run, "perf/img_per_sec"), lambda v: f"{v:,.0f} /s, median"))
    row("images per second and chip", *_text(per_chip, lambda v: f"{v:,.0f} /s, median"))
    row("step time", *_text(median(run, "perf/step_seconds"), lambda v: f"{1000 * v:,.0f} ms, median"))
    mfu = median(run, "perf/mfu")
    row(
        "model FLOPs utilisation (MFU)",
        *_text(mfu, lambda v: f"{100 * v:.1f} %, median"),
        "measured time, computed FLOPs",
    )
    waits = seconds["input_wait"] / seconds["train"] if seconds.get("train") and "input_wait" in seconds else None
    waits = median(run, "perf/input_wait_fraction") if waits is None else min(waits, 1.0)
    row("share of training time spent waiting for input", *_text(waits, lambda v: f"{100 * v:.1f} %"))
    for key, what in (("checkpoint", "checkpoints"), ("eval", "evaluation")):
        row(f"time for {what}", *_text(seconds.get(key), duration))
    step_flops = costs.get("flops_per_step")
    row("model FLOPs of a step", *_text(step_flops, count), "computed")
    if number(step_flops) and run.step:
        row("model FLOPs of the run", step_flops, count(step_flops * run.step), "computed")
    peaks = [v for _, v in run.series("perf/device_memory_peak_gib")]
    row("peak memory of a device", *_text(max(peaks, default=None), lambda v: f"{v:.2f} GiB"))
    requests = ((costs.get("storage") or {}).get("so far") or {}).get("all") or {}
    dollars, known = requests.get("dollars"), requests.get("known", "estimated")
    row("requests to storage", *_text(dollars, lambda v: f"{v:.2g} dollars" if v < 10 else f"{v:,.0f} dollars"), known)
    row("parameters", *_text(costs.get("parameters"), lambda v: f"{v:,}"), "counted")
    if number(mfu):
        notes.append(costs.get("mfu_formula") or "The formula of the MFU is not recorded.")
        if costs.get("peak_flops_per_device"):
            notes.append(f"Peak FLOP/s: {costs['peak_flops_per_device']}.")
    return {"rows": rows, "shares": shares, "notes": notes}


def _text(value: Any, form) -> tuple[Any, str]:
    return value, form(value) if number(value) else ""


def chip_hours(run: Run) -> float:
    """Hours of all chips together, restarts included; 0 if nothing is recorded.

    Older runs recorded no sum over starts: they count as if every start had had the devices of the last.
    """
    if number(run.costs.get("chip_seconds")):
        return run.costs["chip_seconds"] / 3600
    seconds = run.costs.get("seconds") or {}
    total = sum(v for k, v in seconds.items() if k not in NOT_SPENT and number(v))
    return total * chips.count(run.costs.get("devices") or 1, run.costs.get("device_kind", "")) / 3600


def median(run: Run, key: str) -> float | None:
    """Of the logged values after the first step, which also holds the start-up; None if there are none."""
    values = [r[key] for r in run.rows if r["step"] > 1 and number(r.get(key))]
    return float(np.median(values)) if values else (run.costs.get("median") or {}).get(key)


def count(flops: float) -> str:
    """`2.9e11` -> `290 GFLOP`."""
    for size, letter in ((1e18, "E"), (1e15, "P"), (1e12, "T"), (1e9, "G"), (1e6, "M")):
        if flops >= size:
            return f"{flops / size:.3g} {letter}FLOP"
    return f"{flops:.3g} FLOP"


def duration(seconds: float) -> str:
    """`75 s`, `9.4 min`, `5.1 h`: two or three digits."""
    for size, unit in ((3600, "h"), (60, "min")):
        if seconds >= 2 * size:
            return f"{seconds / size:.1f} {unit}"
    return f"{seconds:.1f} s" if seconds < 10 else f"{seconds:.0f} s"
