"""Linear probe: a linear classifier on frozen features, pooled before any projection.

Two recipes, `solver`:

- "lbfgs": logistic regression on cached features, its l2 swept on validation rows (`val`, or a part of `train` held
  out), then solved once more on training and validation rows together (Radford et al. 2021, appendix A.3). Every
  channel is standardised by its mean and standard deviation over the training rows, as MAE's probe normalises (He et
  al. 2022, appendix A.2); the objective is scikit-learn's, with C = 1 / l2: see `logistic`.
- "lars": a head trained on augmented pictures (He et al. 2022, appendix A.2): see `lars`.
"""

from __future__ import annotations

import dataclasses
import logging
from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np

from maeclip_jax.errors import UserError, choose, unknown
from maeclip_jax.evals import l2_search, lars, logistic
from maeclip_jax.evals.accuracy import Labelled, accuracies, ranks
from maeclip_jax.evals.protocol import Context, Detail, Metric, Picture, batch_within, percent
from maeclip_jax.evals.standardisation import Standard

_log = logging.getLogger(__name__)

# Valid settings of each recipe with their defaults.
SOLVERS: dict[str, dict[str, Any]] = {
    # l2: strengths to try; None = 27 from 1e-10 to 1e8, coarse to fine. holdout: share of the training rows that
    # validates where there is no `val`. sweep_rows: strengths are ranked on at most so many training rows (None: all);
    # the final fit takes all of them. iterations: at most, for the final fit. standardise: False leaves features as
    # they are, as CLIP's own probe does.
    "lbfgs": dict(l2=None, holdout=0.2, sweep_rows=10_000, iterations=1000, standardise=True),
    # rate: of 256 rows. batch_size: 16384 in MAE's paper. epochs and warmup in epochs.
    "lars": dict(rate=0.1, batch_size=1024, epochs=90, warmup=10),
}


class LinearProbe:
    """`data`: pictures it is tested on; `train`, `val`: what it learns from and validates on, with "image" and "label".
    `pool`: own | embed | gap | max | cls | ... `solver`: a name, or dict(type=name, setting=...); with "lars" the ops
    of `train` are the augmentation, and `val` is not used. `classes`: how many, where the data does not say. `task`:
    the task of a benchmark that this is, by which tables find it (VTAB's names).

    Metrics in percent: `top1`, `mean_per_class`, `top5` (more than 5 classes), `train_top1`; each with its chance
    level. If the best l2 is the least or the greatest that was tried, a warning says so, and a note at the metrics.
    """

    def __init__(
        self,
        context: Context,
        *,
        data: Mapping,
        train: Mapping,
        val: Mapping | None = None,
        pool: str = "own",
        solver: str | Mapping = "lbfgs",
        classes: int | None = None,
        batch_size: int = 256,
        seed: int = 0,
        task: str = "",
    ):
        self.task = task
        self.context, self.train, self.pool, self.seed = context, train, pool, seed
        self.solver, self.settings = read_solver(solver)
        sets = {"data": data}
        if self.solver == "lbfgs":
            sets |= {"train": train} | ({"val": val} if val is not None else {})
        self.labelled = Labelled(context, "linear_probe", sets, pool, batch_size, classes)

    def run(self, params: Any) -> Iterator[Metric | Picture | Detail]:
        """Metrics, then the table of the sweep or of the training."""
        sets = self.labelled.load(params)
        solve = self._lbfgs if self.solver == "lbfgs" else self._lars
        score_NxC, train_top1, table, about = solve(params, sets)
        label_N = sets["data"][1]
        rank_N, keys = ranks(score_NxC, label_N), self.labelled.keys
        for metric in accuracies(rank_N, label_N, self.labelled.classes, keys):
            yield dataclasses.replace(metric, note=", ".join(filter(None, (metric.note, about))))
        yield percent("train_top1", train_top1, chance=100 / self.labelled.classes, note=about)
        yield Detail("solver", table)

    def _lbfgs(self, params: Any, sets: Mapping) -> tuple[np.ndarray, float, dict, str]:
        (x_NxD, y_N), classes, settings = sets["train"], self.labelled.classes, self.settings
        if "val" in sets:
            train, val = (x_NxD, y_N), sets["val"]
        else:
            order = np.random.default_rng(self.seed).permutation(len(y_N))
            if len(y_N) < 2:
                raise UserError("linear_probe: train has 1 row, which cannot be held out, too; at least 2 are needed")
            rows = min(max(1, round(settings["holdout"] * len(y_N))), len(y_N) - 1)
            train, val = ((x_NxD[n], y_N[n]) for n in (order[rows:], order[:rows]))
        standard = Standard.of(train[0]) if settings["standardise"] else lambda x_NxD: x_NxD
        train, val = ((standard(x), y) for x, y in (train, val))
        tries = 1 + (len(set(settings["l2"])) if settings["l2"] is not None else l2_search.MOST)
        with self.context.progress("fits", tries) as progress:
            problem = logistic.Problem(*l2_search.some(*train, settings["sweep_rows"], self.seed), classes)
            search = l2_search.search(problem, *val, settings["l2"], tick=progress.update)
            best = search.fit.take([search.best])
            both = [np.concatenate(pair) for pair in zip(train, val)]
            fit = logistic.Problem(*both, classes).solve(
                best.l2, start=best, iterations=settings["iterations"], tick=progress.update
            )
        rows = [[*row] for row in zip(search.fit.l2.tolist(), search.accuracy.tolist(), search.fit.iterations.tolist())]
        rows = [[*row, "yes" if done else "no"] for row, done in zip(rows, search.fit.converged)]
        final = "" if fit.converged[0] else f", stopped after {int(fit.iterations[0])} iterations"
        note = (
            f"Best l2 {float(best.l2[0]):.4g} (C = {1 / float(best.l2[0]):.4g}) of {len(rows)} tried on {problem.rows} "
            f"training and {len(val[1])} validation rows; final fit on {len(both[1])} rows of {x_NxD.shape[1]} "
            f"features ({self.pool}){', standardised' * settings['standardise']}{final}."
        )
        if not search.fit.converged[search.best]:
            note += " The sweep stopped before the best one had converged."
        about = ""
        if search.at_edge and len(rows) > 1:
            about = f"best l2 {float(best.l2[0]):.4g} at the edge of those tried"
            note += " It is at the EDGE of what was tried: the best may lie beyond."
            tried = f"{search.fit.l2[0]:.4g} to {search.fit.l2[-1]:.4g}"
            _log.warning("linear_probe: %s (%s); the best may lie beyond", about, tried)
        absent = [c for c in range(classes) if c not in set(both[1].tolist())]
        if absent:
            note += f" {len(absent)} of {classes} classes have no training row ({self.labelled.name(absent[0])}, ...)."
        table = {"kind": "table", "columns": ["l2", "validation top-1 (%)", "iterations", "converged"], "rows": rows}
        train_top1 = 100 * float(np.mean(ranks(fit.scores(both[0]), both[1]) == 0))
        return fit.scores(standard(sets["data"][0])), train_top1, table | {"note": note}, about

    def _lars(self, params: Any, sets: Mapping) -> tuple[np.ndarray, float, dict, str]:
        pictures = len(self.context.source(self.train))
        settings = self.settings | {"batch_size": batch_within(self.context, self.settings["batch_size"], pictures)}
        head, history = lars.train(
            self.context, params, self.train, self.labelled.classes, self.pool, self.seed, **settings
        )
        rows = [[n + 1, *row] for n, row in enumerate(history)]
        note = f"LARS: {settings}. Accuracy on the augmented pictures it learns from, as it learns."
        if settings != self.settings:
            note += f" A batch was to have {self.settings['batch_size']} pictures; there are {pictures}."
        table = {"kind": "table", "columns": ["epoch", "loss", "training top-1 (%)"], "rows": rows, "note": note}
        return head.scores(sets["data"][0]), history[-1][1], table, ""


def read_solver(solver: str | Mapping) -> tuple[str, dict[str, Any]]:
    """Name of the recipe and all its settings; UserError with the valid ones."""
    given = {"type": solver} if isinstance(solver, str) else dict(solver)
    name = given.pop("type", "lbfgs")
    settings = dict(choose("solver of linear_probe", name, SOLVERS))
    for key in given:
        if key not in settings:
            raise unknown(f"setting of solver {name!r}:", key, sorted(settings))
    settings |= given
    if not 0 < settings.get("holdout", 0.5) < 1:
        raise UserError(f"linear_probe: holdout={settings['holdout']} is not valid; valid: a share between 0 and 1")
    strengths = settings.get("l2")
    if strengths is not None and (not len(strengths) or min(strengths) <= 0):
        raise UserError(f"linear_probe: l2={strengths} is not valid; valid: numbers above 0, at least one, or None")
    if name == "lars" and not (settings["epochs"] > settings["warmup"] >= 0 and settings["rate"] > 0):
        given = ", ".join(f"{key}={settings[key]}" for key in ("epochs", "warmup", "rate"))
        raise UserError(f"linear_probe: {given} are not valid; valid: more epochs than warmup >= 0, and a rate above 0")
    return name, settings
