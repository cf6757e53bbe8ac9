"""From runs to models: runs that differ in their seed alone are one, finetuned ones belong to the pretrained."""

from __future__ import annotations

import dataclasses
import functools
import json
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

from etils import epath

from maeclip_jax.config import leaves
from maeclip_jax.errors import UserError
from maeclip_jax.report import paper
from maeclip_jax.report.run import OBJECTIVES, Number, Result, Run, read
from maeclip_jax.workdir.identity import identity

# Where a finetuned run began: seeds of the pretrained one differ in it.
BEGAN = ("resume", "init_from", "init_rules", "init_adopted", "arg.init")
# Settings of an evaluator that do not change what is measured (of a loss over the batch, its size does).
UNSEEN = re.compile(r"every|(\w+\.)?(batch_size|num_threads|num_workers|prefetch|max_bad|order|blocks\..*)|.*\.dir")


@dataclasses.dataclass(frozen=True)
class Model:
    """What a row of a table is about. `runs`: one per seed; `finetuned`: runs of objective "vqa" that began with it.

    `pool`: image / text if they differ; `note`: how it differs from the paper's setting and from other models with the
    same four names; `papers`: whether it may stand beside a number of the paper.
    """

    objective: str
    pool: str
    scale: str
    size: str
    note: str
    runs: tuple[Run, ...]
    finetuned: tuple[Run, ...] = ()
    papers: bool = False

    @property
    def label(self) -> str:
        """`CLIP MAX demo`."""
        size = self.size if self.size != self.scale else ""
        return " ".join(filter(None, (self.objective, self.pool.upper(), self.scale, size, self.note)))

    @property
    def image_pool(self) -> str:
        """How pictures are pooled."""
        return self.pool.split(" / ")[0]

    @property
    def examples(self) -> list[float]:
        """Examples seen before the newest evaluation (or at all, if there is none): one number unless seeds differ."""
        return sorted({r.examples(r.evals[-1]["step"] if r.evals else r.step) for r in self.runs})

    @functools.cached_property
    def pairs(self) -> float | None:
        """Different examples read before the newest evaluation, the most of its seeds; None if it is not known."""
        counts = [r.pairs(r.evals[-1]["step"] if r.evals else r.step) for r in self.runs]
        return max(counts) if counts and None not in counts else None

    @property
    def order(self) -> tuple:
        """The paper's order of rows."""
        known = list(paper.SCALES)
        scale = known.index(self.scale) if self.scale in known else -1
        objectives = [*paper.OBJECTIVES, self.objective]
        return objectives.index(self.objective), self.objective, self.pool, scale, self.scale, self.size, self.note


@dataclasses.dataclass(frozen=True)
class Entry:
    """A number, and all that says what it is a number of. `settings`: flat, without what changes no number."""

    model: Model
    run: Run
    evaluator: str
    step: int
    type: str
    data: str
    split: str
    settings: Mapping[str, Any]
    metric: Number
    finetuned: bool

    @property
    def column(self) -> paper.Column:
        """What is measured."""
        return paper.Column(self.type, self.data, self.metric.name)

    @property
    def own_pool(self) -> bool:
        """Whether features were pooled as the model pools its pictures."""
        return self.settings.get("pool", "own") in ("own", self.model.image_pool)


def models(runs: Sequence[Run], notes: list[str]) -> list[Model]:
    """The models of runs, in the paper's order; what had to be guessed or left out is said in `notes`."""
    finetuned = [r for r in runs if _is_finetuned(r)]
    pretrained = {_place(r.workdir): r for r in runs if not _is_finetuned(r)}
    began: dict[str, list[Run]] = {}
    alone: list[Model] = []
    for run in finetuned:
        place = _origin(run, pretrained)
        if place and place not in pretrained:
            try:  # not among the given runs: it says what it is, its evaluations were not asked for
                there = read(place)
                pretrained[place] = dataclasses.replace(there, evals=[{"step": e["step"]} for e in there.evals])
            except UserError:
                notes.append(f"{run.workdir.name} began with {run.find('init_from')!r}, which is not there to be read.")
                place = ""
        if place:
            began.setdefault(place, []).append(run)
        else:
            of = str(run.find("arg.of") or "unknown")
            note = "pretrained run not found" if run.find("init_from") else "not pretrained"
            objective, pool = OBJECTIVES.get(of, of), str(run.find("arg.pretrained_pool", "arg.pool") or "")
            alone.append(Model(objective, pool, run.scale, run.size, note, (), (run,)))
    groups: dict[tuple[str, int], list[Run]] = {}
    for run in pretrained.values():
        what, n = json.dumps(identity(run.config), sort_keys=True), 0
        while any(r.find("seed") == run.find("seed") for r in groups.get((what, n), ())):
            n += 1  # the same seed again adds no sample
        groups.setdefault((what, n), []).append(run)
    made = [_model(g, [v for r in g for v in began.get(_place(r.workdir), ())]) for g in groups.values()]
    made = [dataclasses.replace(m, note=", ".join(filter(None, (m.note, *_apart(m, made))))) for m in made]
    return sorted([*made, *alone], key=lambda m: m.order)


def _model(runs: Sequence[Run], finetuned: Sequence[Run]) -> Model:
    first = runs[0]
    names = {name: first.find(f"arg.{name}") for name in paper.SETTING}
    began = first.find("init_from")
    papers = not began and names["size"] is not None and all(v in (None, paper.SETTING[k]) for k, v in names.items())
    # Settings of its argument that are not the paper's, and where it began, are part of its name.
    other = [f"{paper.LABELS[k]} {names[k]}" for k in paper.LABELS if names[k] not in (None, paper.SETTING[k])]
    note = ", ".join([*other, *([f"from {began}"] if began else [])])
    return Model(first.objective, first.pool, first.scale, first.size, note, tuple(runs), tuple(finetuned), papers)


def _apart(model: Model, others: Sequence[Model]) -> list[str]:
    """In what a model differs from those of the same objective, pooling, scale and size."""
    same = [m for m in others if m.order == model.order]
    if len(same) < 2:
        return []
    apart = differences([described(m.runs[0]) for m in same])
    return apart[[m is model for m in same].index(True)] or [model.runs[0].workdir.name]


def differences(several: Sequence[Mapping[str, Any]], most: int = 3) -> list[list[str]]:
    """Of flat dicts, what each has that not all have: `["optim.lr 0.1", ...]`, settings of the argument rather than
    what follows from them, short values rather than long ones."""
    keys = list(dict.fromkeys(k for one in several for k in one))
    keys = [k for k in keys if any(one.get(k) != several[0].get(k) for one in several)]
    keys = [k for k in keys if k.startswith("arg.")] or keys
    keys = [k for k in keys if all(len(str(one.get(k))) <= 32 for one in several)] or keys
    more = [f"and {len(keys) - most} more"] if len(keys) > most else []
    return [[_setting(k.removeprefix("arg."), one.get(k)) for k in keys[:most]] + more for one in several]


def _setting(name: str, value: Any) -> str:
    if isinstance(value, bool):
        return name if value else f"not {name}"
    return f"{name} {value}"


def described(run: Run) -> dict[str, Any]:
    """A run's identity, and the settings of its argument, which say most of it in short."""
    return identity(run.config) | {f"arg.{k}": v for k, v in (run.config.get("arg") or {}).items()}


def measured(settings: Mapping) -> dict[str, Any]:
    """The settings of an evaluator that decide what is measured, flat."""
    found = dict(leaves(settings))
    loss = settings.get("type") == "loss"
    return {k: v for k, v in found.items() if not UNSEEN.fullmatch(k) or (loss and k == "batch_size")}


def _is_finetuned(run: Run) -> bool:
    return run.find("objective") == "vqa"


def _place(path: epath.PathLike) -> str:
    return str(epath.Path(path) if "://" in str(path) else epath.Path(path).resolve())


def _origin(run: Run, known: Iterable[str]) -> str:
    """The workdir of the run that a run began with, or empty. A relative path may have been meant from elsewhere: then
    it is the one of `known` that ends with it."""
    path = re.sub(r"/(checkpoints(/\d+)?|\d+)$", "", str(run.find("init_from") or "").rstrip("/"))
    place = _place(path) if path else ""
    if place in known or not path or path.startswith("/") or "://" in path:
        return place
    ends = [k for k in known if k.endswith("/" + path.removeprefix("./"))]
    return ends[0] if len(ends) == 1 else place


def entries(several: Sequence[Model]) -> Iterator[Entry]:
    """All numbers: of every run the newest result of every evaluator."""
    for model in several:
        for run in (*model.runs, *model.finetuned):
            for result in run.results():
                yield from of_result(model, run, result)


def of_result(model: Model, run: Run, result: Result) -> Iterator[Entry]:
    """The numbers of one result."""
    finetuned = _is_finetuned(run)
    kind = str(result.settings.get("type", result.evaluator))
    data, split = data_set(result.settings)
    settings = measured(result.settings)
    if finetuned:
        settings |= {k: v for k, v in described(run).items() if k not in BEGAN}
    for metric in result.metrics:
        yield Entry(model, run, result.evaluator, result.step, kind, data, split, settings, metric, finetuned)


def data_set(settings: Mapping) -> tuple[str, str]:
    """(name, split) of the data that an evaluator's numbers are of; ("", "") if its settings do not say.

    Data sets of the paper are named as in TFDS, without configuration; others with it, without version.
    """
    data = next((settings[k] for k in ("test", "eval", "data") if isinstance(settings.get(k), Mapping)), {})
    source = data.get("source", data)
    while isinstance(source, Mapping) and isinstance(source.get("of"), Mapping):
        source = source["of"]  # questions of a data set
    if not isinstance(source, Mapping):
        return "", ""
    name = str(source.get("name") or "")
    if not name and source.get("dir"):
        parts = [p for p in re.split(r"[/\\]", str(source["dir"])) if p]
        name = next((p for p in reversed(parts) if not re.fullmatch(r"\d+\.\d+\.\d+", p)), "")
    name = (name or str(source.get("kind", ""))).split(":")[0]
    base = name.split("/")[0]
    return base if base in paper.NAMES else name, str(settings.get("split") or source.get("split") or "")
