"""Figures of pre-flights as text: one in full, two side by side, or many as the rows of a table."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from maeclip_jax.preflight import storage
from maeclip_jax.run import flops

NOTE = (
    "Compiler-estimated: cycles of the TPU compiler's cost model over the clock, on no TPU; kernels of ours by the "
    "compiler's schedule of them. Not in it: time spent waiting for collectives, calls and operations without an "
    "estimate, and the input. Bands: such estimates with the waits for collectives, times what published or calibrated "
    "measurements of a chip allow."
)
# Of a program without a backward pass.
FORWARD = flops.FORMULA.replace("3 x forward", "forward").replace(", remat not counted", "")


def rows(found: Mapping) -> dict[str, str]:
    """What is printed of one pre-flight, label -> text."""
    memory, room = found["peak HBM GiB"], found["HBM GiB"]
    need = "the compiler does not tell" if memory is None else f"{memory:.2f} GiB of {room:.2f} ({memory / room:.0%})"
    out = {
        "slice": f"{found['slice']}, {found['devices']} devices {found['device kind']}",
        "compiler": "; ".join([found["compiler"], *(f"{k}={v}" for k, v in (found["compiler options"] or {}).items())]),
        "mesh": found["mesh"],
        "program": f"{found['program']}; {', '.join(f'{k}={v}' for k, v in found['compute'].items())}",
        "batch": f"{found['batch']:,} ({found['batch per chip']:,.4g} a chip)",
        **({"micro-batches": micro_batches(found)} if found.get("micro-batches", 1) > 1 else {}),
        "parameters": f"{found['parameters']:,}; {found['parameters GiB']:.3f} GiB a device",
        "optimizer": f"{found['optimizer GiB']:.3f} GiB a device",
        **({p: f"{found[f'{p} GiB']:.3f} GiB a device" for p in ("average", "teacher") if found[f"{p} GiB"]}),
        "peak HBM (compiler)": f"{need} a device",
        **({"of it temporaries": f"{found['temporaries GiB']:.2f} GiB"} if "temporaries GiB" in found else {}),
        "verdict": verdict(found),
        "compiled in": f"{found['compile seconds']:.0f} s on this machine",
    }
    if not found["fits"]:
        return out | {"compiler says": found["compiler says"]}
    moved = ", ".join(f"{k} {size / 2**20:,.1f} MiB" for k, size in sorted(found["collectives"].items())) or "none"
    net, band = found["network"], found["band"]
    custom, moving = found["custom calls without an estimate"], found.get("operations without an estimate")
    ratio = found["counted FLOPs"] / found["model FLOPs"] if found["model FLOPs"] else 0.0
    out |= {
        "model FLOPs a step": f"{found['model FLOPs']:.4g}",
        "FLOPs in the program": f"{found['counted FLOPs']:.4g} ({ratio:.1%} of the model's; above 100 %: recomputed)",
        "step (compiler-estimated)": f"{1e3 * found['step seconds']:.1f} ms",
        "MFU (compiler-estimated)": f"{found['MFU']:.1%}",
        "images/s (compiler-estimated)": f"{found['images/s']:,.0f} ({found['images/s'] / found['chips']:,.0f} a chip)",
        "collectives a step": moved,
        "network, exposed (estimated)": network(net) if net else "no data sheet",
        "step, band": f"{1e3 * found['step seconds low']:.1f} to {1e3 * found['step seconds high']:.1f} ms: "
        f"{band['low']:.3g} to {band['high']:.3g} times the step with its waits ({band['source']})",
        "kernels of ours": "; ".join(
            f"{k['calls']} x {k['kernel']} {1e3 * k['seconds']:.2f} ms ({k['how']})" for k in found["kernels"]
        )
        or "none",
        "custom calls, no estimate": _counted(custom),
    }
    if moving is not None:  # figures that were kept before have none
        out["operations, no estimate"] = _counted(moving)
    if found["loops of unknown length"]:
        out["loops of unknown length"] = f"{found['loops of unknown length']}, counted as one turn: times are too low"
    if found["program"] == "train":
        out["whole run (compiler-estimated)"] = (
            f"{found['steps']:,} steps: {found['hours']:,.2f} h, {found['chip-hours']:,.1f} chip-hours"
            + (f", {found['cost']:,.2f} dollars at {found['price']}" if "cost" in found else "")
        )
        low, high = (found[f"hours {end}"] for end in ("low", "high"))
        cost = f", {found['cost low']:,.2f} to {found['cost high']:,.2f} dollars" if "cost" in found else ""
        out["whole run, band"] = f"{low:,.2f} to {high:,.2f} h{cost}"
    return out


def _counted(calls: Mapping[str, int]) -> str:
    return ", ".join(f"{n} x {name}" for name, n in sorted(calls.items())) or "0"


def network(net: Mapping) -> str:
    """Waits for the network, what is hidden, and how many calls of each kind go on while the core works."""
    unknown = ", ".join(net.get("without a data sheet", ()))
    kinds = ", ".join(f"{of['asynchronous']} of {of['calls']} {kind}" for kind, of in sorted(net["kinds"].items()))
    return (
        f"{1e3 * net['exposed seconds']:.2f} ms at the data sheet's speed, {1e3 * net['hidden seconds']:.2f} ms hidden"
        + (f"; asynchronous: {kinds}" if kinds else "")
        + (f"; not in it, without a data sheet: {unknown}" if unknown else "")
    )


def micro_batches(found: Mapping) -> str:
    """`32 parts of 64 rows a device; parameters gathered once a step`."""
    rows = found["batch"] // found["batch shards"] // found["micro-batches"]
    gathered = f"; parameters {found['weights']}" if found["weights"] else ""
    return f"{found['micro-batches']} parts of {rows} rows a device{gathered}"


def verdict(found: Mapping) -> str:
    """fits, or what to change."""
    if found["fits"]:
        return "fits"
    flags = " ".join(f"--config.{k}={v}" for k, v in found["remedy"].items())
    return f"DOES NOT FIT; try {flags} (guessed: run again with it)" if flags else "DOES NOT FIT; take a larger slice"


def full(columns: Sequence[tuple[str, Mapping]]) -> str:
    """(name, figures) of one pre-flight or of several, side by side, and the dearest operations of each."""
    texts = [rows(found) for _, found in columns]
    labels = list(dict.fromkeys(label for text in texts for label in text))
    cells = [["", *(name for name, _ in columns)]] if len(columns) > 1 else [["config", columns[0][0]]]
    cells += [[label, *(text.get(label, "-") for text in texts)] for label in labels]
    lines = aligned(cells)
    for name, found in columns:
        if found["fits"]:
            lines += ["", f"dearest operations{f' of {name}' if len(columns) > 1 else ''} (compiler-estimated)"]
            lines += [f"  {1e3 * t['seconds']:8.2f} ms {t['share']:6.1%}  {t['module']}" for t in found["top"]]
        if "storage" in found:
            lines += ["", *([f"of {name}:"] if len(columns) > 1 else []), *storage.text(found["storage"])]
    formula = flops.FORMULA if columns[0][1]["program"] in ("train", "contrast") else FORWARD
    return "\n".join([*lines, "", f"{formula}.", NOTE])


def aligned(cells: Sequence[Sequence[str]]) -> list[str]:
    """Rows of text with columns as wide as their widest cell; the last is left as it is."""
    widths = [max(len(row[i]) for row in cells) for i in range(len(cells[0]) - 1)]
    return ["  ".join([*(cell.ljust(n) for cell, n in zip(row, widths)), row[-1]]).rstrip() for row in cells]


HEADER = ("experiment", "slice", "batch/chip", "mesh", "layers, remat", "HBM GiB", "step ms", "MFU", "images/s",
          "waits ms", "band ms", "hours", "chip-hours", "dollars", "verdict")  # fmt: skip


def line(name: str, found: Mapping) -> tuple[str, ...]:
    """One pre-flight as the cells of a row under HEADER; figures of time are compiler-estimated."""
    compute = found["compute"]
    memory = "?" if found["peak HBM GiB"] is None else f"{found['peak HBM GiB']:.1f} of {found['HBM GiB']:.1f}"
    front = (
        name,
        found["slice"],
        f"{found['batch per chip']:g}",
        found["mesh"],
        f"{compute['layers']}, {compute['remat']}",
        memory,
    )
    if not found["fits"]:
        return (*front, *("-",) * 8, verdict(found))
    net = found["network"]
    return (
        *front, f"{1e3 * found['step seconds']:.1f}", f"{found['MFU']:.1%}", f"{found['images/s']:,.0f}",
        f"{1e3 * net['exposed seconds']:.1f}{' + ?' if net.get('without a data sheet') else ''}" if net else "-",
        f"{1e3 * found['step seconds low']:.0f} to {1e3 * found['step seconds high']:.0f}",
        *(hours(found) if found["program"] == "train" else ("-", "-", "-")), verdict(found),
    )  # fmt: skip


def hours(found: Mapping) -> tuple[str, str, str]:
    """Hours of a whole run, chip-hours, and what they cost if a price is known; the first and the last as bands."""
    cost = f"{found['cost low']:,.0f} to {found['cost high']:,.0f}" if "cost" in found else "-"
    return f"{found['hours low']:,.1f} to {found['hours high']:,.1f}", f"{found['chip-hours']:,.0f}", cost


def markdown(cells: Sequence[Sequence[str]]) -> str:
    """Rows as a Markdown table, the first the header."""
    body = ["| " + " | ".join(row) + " |" for row in cells]
    return "\n".join([body[0], "|" + "---|" * len(cells[0]), *body[1:]])
