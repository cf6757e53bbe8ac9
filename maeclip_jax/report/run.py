"""What a workdir says about its run: config.json, metrics.jsonl, costs.json, evals/<step>.json and their pictures."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

from etils import epath

from maeclip_jax import remote
from maeclip_jax.config import to_steps
from maeclip_jax.errors import UserError
from maeclip_jax.workdir import CONFIG, COSTS, DATA, EVALS, read_lines, read_object, read_results

OBJECTIVES = {
    "mae": "MAE", "m3ae": "M3AE", "clip": "CLIP", "mae_clip": "MAE-CLIP", "slip": "SLIP", "silc": "SILC",
    "tips": "TIPS", "vqa": "VQA finetuning",
}  # fmt: skip


@dataclasses.dataclass(frozen=True)
class Number:
    """A metric of an evaluator as evals/<step>.json holds it: see `evals.protocol.Metric`.

    `own`: of an evaluator that a person brought along, which is shown whatever it is compared with.
    """

    evaluator: str
    name: str
    value: float
    unit: str = ""
    better: str = "none"
    chance: float | None = None
    baseline: float | None = None
    interval: tuple[float, float] | None = None
    note: str = ""
    n: int | None = None
    how: str = ""
    own: bool = False

    @property
    def against(self) -> tuple[tuple[str, float], ...]:
        """What it is compared with: ("chance" or "baseline", value), the first is the main one."""
        found = (("chance", self.chance), ("baseline", self.baseline))
        return tuple((kind, value) for kind, value in found if value is not None)

    @property
    def reference(self) -> float | None:
        """What it is mainly compared with, if anything."""
        return self.against[0][1] if self.against else None

    @property
    def kind(self) -> str:
        """ "chance", "baseline" or nothing."""
        return self.against[0][0] if self.against else ""

    @property
    def shown(self) -> bool:
        """Whether it stands among the main results: it can be compared with something, or is a person's own."""
        return self.reference is not None or self.own

    @property
    def label(self) -> str:
        """The name as a person would say it: `image_to_text_R@1` -> `image to text R@1`."""
        known = {
            "top1": "top-1 accuracy",
            "top5": "top-5 accuracy",
            "mean_per_class": "mean per-class accuracy",
            "masked_mse": "masked-pixel error",
            "patch_mean_mse": "masked-pixel error of mean colours",
            "visible_mean_mse": "masked-pixel error of what is visible",
            "token_accuracy": "masked-word accuracy",
            "miou": "mean IoU",
        }
        return known.get(self.name, self.name.replace("_to_", " → ").replace("_", " "))


@dataclasses.dataclass(frozen=True)
class Result:
    """What one evaluator gave at one step."""

    evaluator: str
    step: int
    metrics: list[Number]
    details: Mapping[str, Mapping]
    pictures: Mapping[str, str]
    settings: Mapping  # the evaluator's part of the config, `type` and `data` among it


@dataclasses.dataclass(frozen=True)
class Run:
    """A workdir as read. `rows`: one dict a logged step, by step. `evals`: the evals/<step>.json, by step.

    `older`: names of files in evals/ that are left out, see `workdir.read_results`. `data`: data.json, what the
    training data were, by component.
    """

    workdir: epath.Path
    config: Mapping
    costs: Mapping
    rows: list[dict]
    evals: list[dict]
    unreadable_rows: int
    older: list[str]
    data: Mapping[str, Mapping] = dataclasses.field(default_factory=dict)

    def find(self, *paths: str) -> Any:
        """The first of the '.'-joined paths that the config holds and that is not empty; or None."""
        for path in paths:
            value: Any = self.config
            for part in path.split("."):
                value = value.get(part) if isinstance(value, Mapping) else None
            if value not in (None, "", {}, []):
                return value
        return None

    @property
    def objective(self) -> str:
        """As in the paper: MAE-CLIP."""
        name = self.find("objective.name", "objective.type", "objective")
        return OBJECTIVES.get(str(name), str(name)) if name else "unnamed objective"

    @property
    def pool(self) -> str:
        """`max`, or `max / cls` where picture and text are pooled in different ways; empty if the config says none."""
        image = self.find("model.image_tower.pool", "image_tower.pool", "pool")
        text = self.find("model.text_tower.pool", "text_tower.pool")
        return str(image or "") if text in (None, image) else f"{image} / {text}"

    @property
    def argument(self) -> dict[str, str]:
        """The experiment's argument: `pool=max,scale=demo` as a dict."""
        text = self.find("argument", "arg") or ""
        if isinstance(text, Mapping):
            return {str(k): str(v) for k, v in text.items()}
        return dict(part.split("=", 1) for part in str(text).split(",") if "=" in part)

    @property
    def scale(self) -> str:
        """Name of the data scale, or empty."""
        return str(self.find("scale") or self.argument.get("scale", ""))

    @property
    def size(self) -> str:
        """Name of the model size, or empty."""
        return str(self.find("arg.size") or self.argument.get("size", ""))

    @property
    def step(self) -> int:
        """The last step that anything is known of."""
        return max([r["step"] for r in self.rows] + [e["step"] for e in self.evals] + [int(self.costs.get("step", 0))])

    def examples(self, step: int) -> float:
        """Examples seen at a step: as logged, or from the batch size; the step itself if neither is known."""
        logged = [r for r in self.rows if number(r.get("progress/examples_seen")) and r["step"]]
        if logged:
            near = min(logged, key=lambda r: abs(r["step"] - step))
            return near["progress/examples_seen"] / near["step"] * step
        return step * float(self.costs.get("batch_size") or self.find("batch_size") or 1)

    @property
    def records(self) -> int | None:
        """How many different records the training data have; None if that is not known, or if they never end."""
        counts = [part.get("records") for part in self.data.values()]
        return sum(counts) if counts and all(counts) else None

    def pairs(self, step: int) -> float | None:
        """How many different examples were read up to a step: all of them after an epoch; None if it is not known."""
        source = self.find("data.source") or {}
        if source.get("kind") == "scenes" and not source.get("count"):  # drawn on the fly, and never twice
            return self.examples(step)
        if self.records is None:
            return None
        weights = {str(part[0]): float(part[1]) for part in (self.find("data") or {}).get("mix") or ()}
        total, seen = sum(weights.values()) or 1.0, self.examples(step)
        shares = {name: weights.get(name, total) / total for name in self.data}  # without a mix there is one part
        return sum(min(part["records"], shares[name] * seen) for name, part in self.data.items())

    def planned(self, total: str) -> float | None:
        """Examples of a duration ("30 epochs") with this run's batch and data; None if that cannot be known."""
        batch, flops = int(self.find("batch_size") or 0), self.costs.get("flops_per_step")
        known = {"epoch": self.records, "flops": (lambda: flops) if flops else None}
        try:
            return batch * to_steps(total, "total", batch_size=batch, **known) if batch else None
        except UserError:
            return None

    def series(self, key: str) -> list[tuple[float, float]]:
        """(examples seen, value) of a logged scalar, without what is not a finite number."""
        return [(self.examples(r["step"]), r[key]) for r in self.rows if number(r.get(key))]

    def results(self) -> list[Result]:
        """The newest result of every evaluator, in the order in which they first ran."""
        newest: dict[str, Result] = {}
        for one in self.evals:
            for name in evaluators_of(one):
                # Replacing keeps the place of the first in the dict's order.
                newest[name] = self.result(one, name)
        return list(newest.values())

    def result(self, one: Mapping, name: str) -> Result:
        """Of the evaluator `name` in an evals/<step>.json; of older files, its settings are those of config.json."""
        return result(one, name, one.get("settings", {}).get(name) or self.find(f"evals.{name}") or {})

    def history(self) -> Iterator[tuple[int, Number]]:
        """(step, metric) of every evaluation, oldest first."""
        for one in self.evals:
            for name in evaluators_of(one):
                for metric in self.result(one, name).metrics:
                    yield one["step"], metric

    def picture(self, name: str) -> bytes | None:
        """A picture by its path relative to evals/ (or to the workdir); None if it is not there."""
        for folder in (self.workdir / EVALS, self.workdir):
            if (folder / name).exists():
                return (folder / name).read_bytes()
        return None


def readable(name: str) -> str:
    """`zero_shot` -> `Zero shot`."""
    name = name.replace("_", " ")
    return name[:1].upper() + name[1:]


def number(value: Any) -> bool:
    """Whether a value is a finite number."""
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)


def evaluators_of(one: Mapping) -> list[str]:
    """Names of the evaluators that have results in an evals/<step>.json."""
    keys = [*one.get("metrics", {}), *one.get("details", {}), *one.get("pictures", {})]
    return list(dict.fromkeys(k.split("/", 1)[0] for k in keys))


def result(one: Mapping, evaluator: str, settings: Mapping | None = None) -> Result:
    """What an evals/<step>.json holds of one evaluator."""
    settings = settings or {}

    def mine(section: str) -> dict:
        prefix = evaluator + "/"
        return {k.removeprefix(prefix): v for k, v in one.get(section, {}).items() if k.startswith(prefix)}

    about, own = mine("about"), ":" in str(settings.get("type", ""))
    metrics = []
    for name, value in mine("metrics").items():
        known = dict(about.get(name, {}))
        known["baseline"] = known.pop("reference", None)
        metrics.append(Number(evaluator, name, value, own=own, **known))
    return Result(evaluator, one["step"], metrics, mine("details"), mine("pictures"), settings)


def workdirs(folders: Iterable[epath.PathLike]) -> list[epath.Path]:
    """The folders; in place of one that is not a workdir, those in it that are, if there are any."""
    out, folders = [], list(folders)
    for folder in folders:
        remote.check_scheme(folder, "workdir")
    for folder in map(epath.Path, folders):
        inside = [] if (folder / CONFIG).exists() else sorted(p.parent for p in folder.glob(f"*/{CONFIG}"))
        out += inside or [folder]
    return out


def read(workdir: epath.PathLike) -> Run:
    """The run of a workdir. UserError, with the path, if the folder is not a workdir or a file in it cannot be read."""
    folder = epath.Path(workdir)
    if not folder.is_dir():
        raise UserError(f"no workdir at {str(folder)!r}; valid: a folder that a run was given as --workdir")
    if not (folder / CONFIG).exists():
        raise UserError(f"{str(folder)!r} is not a workdir: it has no config.json; valid: a run's --workdir")
    lines, unreadable = read_lines(folder)
    rows: dict[int, dict] = {}
    for line in lines:  # later lines of a step over earlier ones
        rows[line["step"]] = rows.get(line["step"], {}) | line
    evals, older = read_results(folder)
    costs = read_object(folder / COSTS) if (folder / COSTS).exists() else {}
    by_step = [rows[step] for step in sorted(rows)]
    data = read_object(folder / DATA, missing={})
    return Run(folder, read_object(folder / CONFIG), costs, by_step, evals, unreadable, [p.name for p in older], data)
