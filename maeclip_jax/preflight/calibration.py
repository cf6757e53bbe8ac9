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
from maeclip_jax.parallel.chips import CHIPS
from maeclip_jax.preflight import bands, topology

ROOFLINE = "model FLOPs at the peak of its devices: what is not compiled for a TPU has no better estimate"


def calibrate(workdir: str, estimate: Callable[[topology.Slice], dict], name: str, keep: str) -> dict:
    """The measured step of a run and its estimate; a line of it goes into the file `keep`.

    `estimate(slice)` gives the figures of the run's own config on a slice; `name`: of the slice, where the
    number of chips does not tell it. UserError for a run without step times.
    """
    folder = epath.Path(workdir)
    costs = files.read_object(folder / files.COSTS)
    seconds = (costs.get("median") or {}).get("perf/step_seconds")
    steps = [row for row in files.read_metrics(workdir) if "perf/step_seconds" in row and row["step"] > 1]
    if not seconds or not steps:
        raise UserError(f"--calibrate={workdir}: no step times; valid: a run that logged steps after the first")
    kind, devices = costs["device_kind"], costs["devices"]
    chip = next((k for k, c in CHIPS.items() if any(p.lower() in kind.lower() for p in c.kinds)), "")
    waited = (costs["median"] or {}).get("perf/input_wait_fraction", 0.0)
    busy = seconds * (1 - min(waited, 1.0))  # an estimate knows nothing of the input
    if chip:
        where = topology.parse(name or named(chip, devices))
        if where.chips * where.chip.devices != devices:
            raise UserError(f"--topology={name}: {where} is not the {devices} devices of {workdir}; valid: its slice")
        found = estimate(where)
        if not found["fits"]:
            raise UserError(f"--calibrate={workdir}: the compiler says that it does not fit on {where}")
        expected, how = found["step seconds"], f"compiled for {where}"
        expected += (found["network"] or {}).get("exposed seconds", 0.0)
        parts = {t["module"]: t["seconds"] for t in found["top"]}
    else:
        chip, peak = kind, float(costs["peak_flops_per_device"].split(",")[0])
        expected, how, parts = costs["flops_per_step"] / (devices * peak), ROOFLINE, {}
    line = {
        "chip": chip, "run": str(workdir), "date": datetime.date.today().isoformat(), "devices": devices,
        "steps": len(steps), "measured seconds": busy, "estimated seconds": expected, "how": how,
        "measured over estimated": busy / expected, "versions": costs.get("versions", {}),
    }  # fmt: skip
    bands.keep(keep, line)
    return line | {"parts": parts, "profile": profile(folder / files.PROFILE)}


def named(chip: str, devices: int) -> str:
    """A slice of so many devices as people call it."""
    chips = devices // CHIPS[chip].devices
    return f"{chip}-{chips * (1 + CHIPS[chip].cores_in_name)}"


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
