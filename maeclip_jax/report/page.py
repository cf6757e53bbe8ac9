"""From a run to a page: what is shown, as plain values, and the templates that show it."""

from __future__ import annotations

import base64
import json
import math
import re
from collections.abc import Mapping, Sequence
from typing import Any

from etils import epath

from maeclip_jax.errors import storage
from maeclip_jax.evals.statistics import said
from maeclip_jax.report import cost, details, figures
from maeclip_jax.report.details import Picture
from maeclip_jax.report.run import Number, Run, readable

TEMPLATES = epath.resource_path("maeclip_jax") / "templates"
CARDS = ("accuracy", "top1", "image_to_text_R@1", "text_to_image_R@1", "miou", "masked_mse", "token_accuracy")
INCIDENTS = (("skipped", "updates skipped (not finite)"), ("bad_records", "bad records replaced"))


def view(run: Run) -> dict[str, Any]:
    """Everything on the page of a run. What is not there is None or empty, with a sentence in `missing`."""
    results, missing = run.results(), []
    metrics = [m for r in results for m in r.metrics]
    minor = [m for m in metrics if not m.shown or (not m.own and re.search("^train_|_matched_iou$", m.name))]
    held = sorted((m for m in metrics if m not in minor), key=lambda m: m.kind != "chance")
    order = {name: n for n, name in enumerate(CARDS)}
    cards = sorted((m for m in held if m.name in order), key=lambda m: order[m.name])
    if not results:
        missing.append("This run has not been evaluated, so there are no results to show.")
    not_applicable = run.evals[-1].get("not_applicable", {}) if run.evals else {}
    missing += [f"{readable(name)} is not applicable: {reason}." for name, reason in not_applicable.items()]
    losses, accuracies = curves("losses", figures.losses(run)), curves("accuracies", figures.accuracies(run))
    if not losses:
        missing.append("No training losses are logged in metrics.jsonl, so there are no loss curves.")
    if run.older:
        missing.append(f"Left out of evals/, as of an older version and without units: {', '.join(run.older)}.")
    if run.unreadable_rows:
        missing.append(f"{run.unreadable_rows} lines of metrics.jsonl could not be read and are left out.")
    shown = details.shown(run, results, missing)
    spent = cost.view(run)
    if not spent["rows"]:
        missing.append("Nothing is recorded of what the run cost (costs.json is written with its checkpoints).")
    command = run.costs.get("command") or run.find("command")
    if not command:
        missing.append("The command of the run is not recorded.")
    versions = run.costs.get("versions") or run.find("versions") or {}
    if not versions:
        missing.append("The versions of the libraries are not recorded.")
    return {
        "title": run.objective, "facts": facts(run), "name": run.workdir.name, "step": run.step,
        "cards": cards[:8], "held": held, "others": minor,
        "steps": sorted({r.step for r in results}), "losses": losses, "accuracies": accuracies,
        "retrieval": shown["tiles"], "sheets": shown["sheet"], "captions": shown["captions"],
        "tables": shown["table"], "cost": spent,
        "command": command, "versions": versions, "config": json.dumps(run.config, indent=1), "missing": missing,
    }  # fmt: skip


def facts(run: Run) -> list[tuple[str, str]]:
    """(what, value) of what was trained, as far as it is known."""
    data = _first(run.config.get("data"), "source") or {}
    data = ", ".join(str(data[k]) for k in ("kind", "name", "split") if data.get(k))
    tower = run.find("model.image_tower") or {}
    shape = [f"{tower[k]} {what}" for k, what in (("width", "wide"), ("depth", "layers")) if tower.get(k)]
    if tower.get("size") and tower.get("patch"):
        shape.append(f"{tower['size']} px in patches of {tower['patch']}")
    parameters, batch = run.costs.get("parameters"), run.costs.get("batch_size") or run.find("batch_size")
    length = f"{run.step:,} steps" + (f" of {batch:,} = {run.examples(run.step):,.0f} examples" if batch else "")
    last = run.rows[-1] if run.rows else {}
    incidents = [f"{last[f'train/{k}']:.0f} {what}" for k, what in INCIDENTS if last.get(f"train/{k}")]
    both = "/" in run.pool
    known = [
        ("pooling", run.pool + (" (picture / text)" if both else "")), ("scale", run.scale), ("data", data),
        ("image tower", ", ".join(shape)), ("parameters", f"{parameters:,}" if parameters else ""),
        ("trained for", length if run.step else ""), ("incidents", ", ".join(incidents)),
    ]  # fmt: skip
    return [(what, value) for what, value in known if value]


def _first(tree: Any, key: str) -> Any:
    """The first value of `key` anywhere in nested dicts."""
    if isinstance(tree, Mapping):
        if key in tree:
            return tree[key]
        found = (_first(v, key) for v in tree.values())
        return next((f for f in found if f), None)
    return None


def curves(name: str, drawings: Sequence[tuple[str, figures.Draw]]) -> list[tuple[str, Picture]]:
    """(title, figure in all its forms) of each drawing."""
    out = []
    for n, (title, draw) in enumerate(drawings):
        light, dark = (figures.render(title, draw, "svg", theme) for theme in ("light", "dark"))
        out.append((title, Picture(f"{name}-{n}", light, dark, figures.render(title, draw, "png"))))
    return out


def amount(value: float, unit: str = "") -> str:
    """A number with its unit, as precise as it is worth: `61.8 %`, `0.16 %`, `0.0123`."""
    if value != value:
        return "not a number"
    if unit == "%":
        return f"{value:.1f} %" if value >= 0.95 or value == 0 else f"{value:.2g} %"
    return f"{value:.3g} {unit}".strip() if abs(value) < 1e5 else f"{value:,.0f} {unit}".strip()


def measured(m: Number, note: str | None = None) -> str:
    """`61.8 ± 1.9 % (n=640) (all 12 neighbours)`: with the interval and the note of a number that has them.

    `note`: in place of its own; "" where that stands elsewhere.
    """
    known = m.interval is not None and all(map(math.isfinite, (m.value, *m.interval)))
    note = m.note if note is None else note
    return (said(m.value, m.unit, m.interval, m.n) if known else amount(m.value, m.unit)) + (
        f" ({note})" if note else ""
    )


def shares(m: Number) -> tuple[float, float]:
    """How much of a card's bar a number and its reference take, 0 to 100: percentages as they are, others as shares of
    the larger of the two."""
    full = 100.0 if m.unit == "%" else max(m.value, m.reference)
    return tuple(min(max(100 * x / full, 0.0), 100.0) if full > 0 else 0.0 for x in (m.value, m.reference))


def bounds(m: Number) -> str:
    """`59.9 to 63.6 %`."""
    low, high = (amount(x, m.unit).removesuffix(f" {m.unit}") for x in m.interval or (m.value, m.value))
    return f"{low} to {high} {m.unit}".strip()


def times(m: Number) -> str:
    """How many times the chance level: `39×`."""
    if not m.reference or m.value != m.value:
        return ""
    ratio = m.value / m.reference
    return f"{ratio:.0f}×" if ratio >= 10 else f"{ratio:.2g}×" if ratio < 1 else f"{ratio:.1f}×"


class Markdown(str):
    """Text that is markdown already; everything else is escaped."""


def plain(value: Any) -> Any:
    """Any value as one line of markdown that shows it literally."""
    if isinstance(value, Markdown) or value is None:
        return value or ""
    text = re.sub(r"\s", " ", str(value))
    return Markdown(re.sub(r"[&<>]|[\\`*_\[\]|#~$]", lambda m: ENTITIES.get(m[0], "\\" + m[0]), text))


ENTITIES = {"&": "&amp;", "<": "&lt;", ">": "&gt;"}


def fence(text: Any, language: str = "") -> Markdown:
    """A code block that its content cannot end."""
    ticks = "`" * max(3, 1 + max((len(t) for t in re.findall("`+", str(text))), default=0))
    return Markdown(f"{ticks}{language}\n{text}\n{ticks}")


def write(values: Mapping[str, Any], template: str, folder: epath.Path) -> epath.Path:
    """Renders a view: `folder`/index.html, all in one file, and `folder`/report.md with its pictures beside it."""
    import jinja2

    files: dict[str, bytes] = {}

    def inline(data: bytes, kind: str) -> str:
        mime = {"svg": "image/svg+xml", "jpg": "image/jpeg"}.get(kind, "image/png")
        return f"data:{mime};base64,{base64.b64encode(data).decode()}"

    def beside(p: Picture) -> Markdown:
        name = re.sub(r"[^A-Za-z0-9_.-]", "-", p.name) + (".png" if p.file else "." + p.kind)
        files[name] = p.file or p.data
        return Markdown(name)

    common = {
        "amount": amount,
        "times": times,
        "measured": measured,
        "bounds": bounds,
        "shares": shares,
        "readable": readable,
        "duration": cost.duration,
    }
    source = {p.name: p.read_text() for p in TEMPLATES.iterdir() if p.name.endswith(".j2")}
    setting = {"loader": jinja2.DictLoader(source), "trim_blocks": True, "lstrip_blocks": True}
    html = jinja2.Environment(autoescape=True, undefined=jinja2.StrictUndefined, **setting)
    html.filters |= common | {"src": lambda p: inline(p.data, p.kind), "dark": lambda p: inline(p.dark, p.kind)}
    text = jinja2.Environment(finalize=plain, undefined=jinja2.StrictUndefined, **setting)
    text.filters |= common | {"src": beside, "fence": fence}
    text.globals["raw"] = Markdown  # what a macro made is escaped already
    page = folder / "index.html"
    rendered = html.get_template(f"{template}.html.j2").render(values)
    markdown = text.get_template(f"{template}.md.j2").render(values)
    with storage.writing(folder, sum(map(len, (rendered, markdown, *files.values())))):
        folder.mkdir(parents=True, exist_ok=True)
        page.write_text(rendered)
        (folder / "report.md").write_text(markdown)
        for name, data in files.items():
            (folder / name).write_bytes(data)
    return page
