"""A run that was made beside its estimate: the ratio of step times is kept, and later estimates for its chip use it."""

from __future__ import annotations

import datetime
import gzip
import json
import re
from collections import Counter
from collections.abc import Callable, Mapping
from typing import Any

from etils import epath

from maeclip_jax import workdir as files
from maeclip_jax.errors import UserError
from maeclip_jax.parallel import chips
from maeclip_jax.preflight import bands, topology

ROOFLINE = "model FLOPs at the peak of its devices: what is not compiled for a TPU has no better estimate"


def calibrate(workdir: str, estimate: Callable[[topology.Slice], dict], name: str, count: int, keep: str) -> dict:
    """The measured step of a run and its estimate; a line of it goes into the file `keep`.

    `estimate(slice)` gives the figures of the run's own config on a slice; `name`: of the slice, where the number of
    chips does not tell it; `count` of such slices, where the run did not note it. UserError for a run without step
    times, and for one of which nobody says how many slices it had.
    """
    folder = epath.Path(workdir)
    costs = files.read_object(folder / files.COSTS)
    seconds = (costs.get("median") or {}).get("perf/step_seconds")
    steps = [row for row in files.read_metrics(workdir) if "perf/step_seconds" in row and row["step"] > 1]
    if not seconds or not steps:
        raise UserError(f"--calibrate={workdir}: no step times; valid: a run that logged steps after the first")
    kind, devices = costs["device_kind"], costs["devices"]
    chip = chips.name(kind)
    waited = (costs["median"] or {}).get("perf/input_wait_fraction", 0.0)
    busy = seconds * (1 - min(waited, 1.0))  # an estimate knows nothing of the input
    if chip:
        slices = costs.get("slices") or (name and count)
        if not slices:
            raise UserError(
                f"--calibrate={workdir}: the run did not note how many slices it had; "
                "valid: with --topology, and --num_slices if there were several"
            )
        where = topology.parse(name or named(chip, devices // slices), slices)
        if where.chips * where.chip.devices != devices or count not in (1, slices):
            raise UserError(
                f"--topology={name} --num_slices={count} is not the {devices} devices in {slices} slices of {workdir}; "
                "valid: its slice"
            )
        found = estimate(where)
        if not found["fits"]:
            raise UserError(f"--calibrate={workdir}: the compiler says that it does not fit on {where}")
        expected, how = found["step seconds"], f"compiled for {where}"
        expected += (found["network"] or {}).get("exposed seconds", 0.0)
        parts = {t["module"]: t["seconds"] for t in found["top"]}
    else:
        chip, peak = kind, costs["peak_flops_per_device"].partition(",")[0]
        if peak == "unknown":
            valid = ", ".join(gpu for gpu, known in chips.GPUS.items() if known)
            raise UserError(
                f"--calibrate={workdir}: the peak of {kind} is not known; valid: runs on TPUs, on CPUs and on {valid}"
            )
        expected, how, parts = costs["flops_per_step"] / (devices * float(peak)), ROOFLINE, {}
    line = {
        "chip": chip, "run": str(workdir), "date": datetime.date.today().isoformat(), "devices": devices,
        "steps": len(steps), "measured seconds": busy, "estimated seconds": expected, "how": how,
        "measured over estimated": busy / expected, "versions": costs.get("versions", {}),
    }  # fmt: skip
    bands.keep(keep, line)
    return line | {"parts": parts, "profile": profile(folder / files.PROFILE)}


def named(chip: str, devices: int) -> str:
    """A slice of so many devices as people call it."""
    of = chips.CHIPS[chip]
    return f"{chip}-{devices // of.devices * (1 + of.cores_in_name)}"


def profile(folder: epath.Path) -> dict[str, float]:
    """{operation: seconds a step of one device} of the newest profile of a run, the dearest first; empty without one.

    Operations that differ by their number alone are one.
    """
    found = sorted(folder.glob("plugins/profile/*/*.trace.json.gz")) if folder.exists() else []
    if not found:
        return {}
    events = json.loads(gzip.decompress(found[-1].read_bytes())).get("traceEvents", [])
    span = re.search(r"steps-(\d+)-(\d+)", str(found[-1]))
    steps = int(span[2]) - int(span[1]) + 1 if span else 1
    total: Counter = Counter()
    threads = set()
    for event in events:
        said: Any = event.get("args") or {}
        if "dur" in event and ("hlo_op" in said or "hlo_category" in said):
            total[re.sub(r"[.\d]+$", "", str(said.get("hlo_op", event["name"])))] += event["dur"] / 1e6
            threads.add(event.get("pid"))
    return {name: seconds / steps / max(len(threads), 1) for name, seconds in total.most_common(20)}


def text(line: Mapping, keep: str) -> str:
    """What a calibration found, for people."""
    out = [
        f"run        {line['run']}, {line['devices']} x {line['chip']}, median of {line['steps']} logged rows",
        f"measured   {1e3 * line['measured seconds']:.1f} ms a step, without waiting for the input",
        f"estimated  {1e3 * line['estimated seconds']:.1f} ms ({line['how']})",
        f"ratio      {line['measured over estimated']:.3f}; kept in {keep}, for later estimates of {line['chip']}",
    ]
    for title, parts in (("estimated, dearest", line["parts"]), ("measured, from its profile", line["profile"])):
        out += ["", title] if parts else []
        out += [f"  {1e3 * seconds:8.2f} ms  {name}" for name, seconds in list(parts.items())[:10]]
    return "\n".join(out)
