"""The page of several runs: the paper's tables, curves, pictures, and what the runs are."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from etils import epath

from maeclip_jax.report import cost, details, paper, tables, trends
from maeclip_jax.report.comparison import link
from maeclip_jax.report.models import Entry, Model, entries, models
from maeclip_jax.report.page import curves
from maeclip_jax.report.run import Run

MOST_ROWS = {"reconstruction": 3}  # of a model's contact sheet, by type of evaluator
ELSE_ROWS = 6
SHEETS = ("grounding", "segmentation", "reconstruction")  # types of evaluators, in this order


def view(runs: Sequence[Run], out: epath.Path) -> dict[str, Any]:
    """Everything on the page; a run that is given twice counts once. What is missing is said in `notes`."""
    notes: list[str] = []
    runs = list({str(epath.Path(r.workdir)).rstrip("/"): r for r in runs}.values())
    found = models(runs, notes)
    numbers = list(entries(found))
    made, absent = tables.paper_tables(found, numbers)
    notes += [f"{run.workdir.name} has not been evaluated." for run in runs if not run.evals]
    notes += [*_uneven(found), *_older(numbers)]
    return {
        "runs": len(runs), "tables": made, "absent": absent, "everything": tables.everything(found, numbers),
        "examples": curves("examples", trends.against_examples(found)),
        "scales": curves("scales", trends.against_pairs(numbers)),
        "sheets": _sheets(found, notes), "models": [_facts(m, r, out) for m in found for r in (*m.runs, *m.finetuned)],
        "paper": tables.of_paper(), "mark": paper.MARK, "notes": notes,
    }  # fmt: skip


def _uneven(several: Sequence[Model]) -> list[str]:
    """Models whose seeds were evaluated after different numbers of examples: their mean is of unequal things."""
    out = []
    for m in several:
        seen = m.examples
        if len(seen) > 1:
            counts = " and ".join(f"{s:,.0f}" for s in seen)
            out.append(f"The seeds of {m.label} were last evaluated after {counts} examples; their means mix these.")
    return out


def _older(numbers: Sequence[Entry]) -> list[str]:
    """Numbers that are not of the step that their row tells of, such as those of a run under way."""
    out: dict[tuple[str, str], set[str]] = {}
    for e in numbers:
        last = e.run.evals[-1]["step"]
        if e.step != last:
            seen = f"{e.run.examples(e.step):,.0f} examples, others after {e.run.examples(last):,.0f}"
            out.setdefault((e.model.label, seen), set()).add(e.evaluator)
    return [f"{', '.join(sorted(names))} of {label} was last measured after {seen}." for (label, seen), names in
            out.items()]  # fmt: skip


def _facts(model: Model, run: Run, out: epath.Path) -> dict[str, Any]:
    """What a run is, for the list of runs."""
    source = run.find("data.source") or {}
    source = source.get("of", source)
    last = run.evals[-1]["step"] if run.evals else None
    hours = cost.chip_hours(run)
    return {
        "name": run.workdir.name, "link": link(run, out), "model": model.label, "seed": run.find("seed"),
        "what": "VQA finetuning" if any(run is r for r in model.finetuned) else "pretraining",
        "data": " ".join(str(source[k]) for k in ("name", "split") if source.get(k)) or str(source.get("kind", "")),
        "evaluated": "" if last is None else f"{run.examples(last):,.0f}", "trained": f"{run.examples(run.step):,.0f}",
        "parameters": run.costs.get("parameters"), "hours": f"{hours:.2g}" if hours else "",
    }  # fmt: skip


def _sheets(several: Sequence[Model], notes: list[str]) -> list[dict[str, Any]]:
    """Newest contact sheets of the first run of every model, by type of evaluator: `title`, `of` (model, sheet)."""
    found: dict[str, dict[str, Any]] = {}
    for model in several:
        for run in model.runs[:1]:
            for sheet in details.shown(run, run.results(), notes, ("sheet",))["sheet"]:
                kind = found.setdefault(sheet["type"], {"title": sheet["title"], "of": []})
                rows = sheet["rows"][: MOST_ROWS.get(sheet["type"], ELSE_ROWS)]
                sheet["rows"] = [(p.named(f"{run.workdir.name}-{p.name}"), text) for p, text in rows]
                if any(sheet["note"] == s["note"] for _, _, s in kind["of"]):
                    sheet["note"] = ""  # said above
                kind["of"].append((model.label, run.workdir.name, sheet))
    return [found[k] for k in sorted(found, key=lambda k: (SHEETS.index(k) if k in SHEETS else len(SHEETS), k))]
