"""Runs the evaluators of a config on parameters: when, under which name, timed, written down. The loop calls it too."""

from __future__ import annotations

import contextlib
import json
import os
import traceback
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import numpy as np
from etils import epath

from maeclip_jax import errors, evals, remote
from maeclip_jax.config import content, digest, named_files, with_leaves
from maeclip_jax.data import source
from maeclip_jax.data import tokenizer as tokenizers
from maeclip_jax.errors.storage import StorageError
from maeclip_jax.evals import Detail, Metric, Picture, items
from maeclip_jax.evals.statistics import said
from maeclip_jax.parallel import sleep
from maeclip_jax.parallel.terminal import Waiting, say, warn
from maeclip_jax.remote import outbox
from maeclip_jax.run import average, checkpoint
from maeclip_jax.run.features import Surroundings
from maeclip_jax.run.setup import setup
from maeclip_jax.workdir import (
    CONFIG,
    EVALS,
    RESULTS_FORMAT,
    items_file,
    make_workdir,
    read_config,
    read_names,
    result_files,
    write_bytes,
    write_text,
)
from maeclip_jax.workdir.claim import find_files, other_words
from maeclip_jax.workdir.identity import model_differences

SECTIONS = ("metrics", "about", "details", "pictures", "not_applicable", "seconds", "settings")


class Runner:
    """The evaluators of a config. `steps` converts a duration of the config to steps; `names`: see `read_names`.

    `averaged`: whether there is an average of the parameters. An evaluation is of that, if it says nothing else, or of
    the parameters as they are (`evals.*.params`, see `average.evaluations`); `which` has EMA or RAW of each.
    `checkpoint`: the one that is evaluated, if it is not of the run in `workdir`.

    Results of step n are in `evals/<n>.json`, pictures beside it; what is there already, of the same settings, is not
    computed again. `failed`: evaluators that could not be made or run, and why. `show` is told of every picture.
    """

    def __init__(
        self,
        config,
        objective,
        mesh,
        tokenizer,
        workdir: epath.Path,
        steps: Callable[[str, str], int],
        names: Mapping,
        averaged: bool = False,
        checkpoint: str = "",
    ):
        self.checkpoint = checkpoint
        self.workdir, self.evaluators, self.every, self.not_applicable = workdir, {}, {}, {}
        self.failed: dict[str, str] = {}
        self._warned: set[str] = set()  # those whose reason has been said
        self.better: dict[str, str] = {}  # metric -> which direction is better, of what has been measured
        self.show: Callable[[int, str, np.ndarray], None] = lambda step, name, pixels_HxWx3: None
        self.settings: dict[str, dict] = {}
        self._known: dict[str, Any] = {}
        self._items: dict[str, dict[str, items.Items]] = {}  # of the step that is known: evaluator -> metric -> items
        self.context = Surroundings(objective, mesh, tokenizer, names)
        made: dict[str, Any] = {}  # entry of config.evals -> its evaluator, for both kinds of parameters
        self.which: dict[str, str] = {}
        for name, (entry, which) in average.evaluations(config.evals, averaged).items():
            if entry in self.failed or entry in self.not_applicable:
                continue  # which is said once
            settings = source.plain(config.evals[entry])
            self.every[name] = steps(settings.pop("every", "0 steps"), f"evals.{entry}.every")
            settings.pop("params", None)
            files = {n: content(digest(path)) for n, path in named_files(settings).items()}
            # A file counts by its content: numbers by another file of the same name are not known yet.
            kept = with_leaves(settings, files) | ({"params": which} if averaged else {})
            self.settings[name] = json.loads(json.dumps(kept, default=repr))
            try:
                if entry not in made:
                    made[entry] = self._make(settings)
                self.evaluators[name], self.which[name] = made[entry], which
            except evals.NotApplicable as reason:
                self.not_applicable[name] = str(reason)
            except errors.UserError as e:
                self.failed[name] = str(e)  # `raise_failures` says it

    def _make(self, settings: dict) -> Any:
        """An evaluator; UserError also if data of it is not there."""
        made = evals.make(settings.pop("type"), self.context, **settings)
        # Is all data there? Said now, not after hours of training; opening reads what describes it, no records.
        for data in settings.values():
            if isinstance(data, Mapping) and "source" in data:
                self.context.source(data)
        return made

    def results(self, step: int) -> dict:
        """What is known of `step`: evals/<step>.json, or an empty result."""
        if self._known.get("step") != step:
            path = self.workdir / EVALS / f"{step}.json"
            before = json.loads(remote.read_text(path) or "{}")
            if before.get("format") != RESULTS_FORMAT:  # of a version whose numbers had no units: made again
                before = {}
            if before and before.get("checkpoint", "") != self.checkpoint:
                held, asked = (of or f"the run in {self.workdir}" for of in (before.get("checkpoint"), self.checkpoint))
                raise errors.UserError(f"{path} holds results of {held}; name another --workdir for those of {asked}")
            self._items = {}
            self._known = {"step": step, "format": RESULTS_FORMAT} | {name: {} for name in SECTIONS}
            self._known |= {"checkpoint": self.checkpoint} if self.checkpoint else {}
            self._known |= before
        return self._known

    def forget_after(self, step: int) -> None:
        """Removes the results of later steps: a run that continues from `step` is going to make them again."""
        if jax.process_index() == 0:
            for later in [p for p in result_files(self.workdir) if int(p.stem) > step]:
                remote.delete(later)
                remote.delete(items_file(self.workdir, int(later.stem)))
        if jax.process_count() > 1:
            from jax.experimental import multihost_utils

            multihost_utils.sync_global_devices("forget_after")

    def due(self, step: int, *, final: bool) -> list[str]:
        """Evaluations whose time is `step`; all of them, if `final`."""
        return [n for n in self.evaluators if final or (self.every[n] and step % self.every[n] == 0)]

    def run_due(self, params: Mapping[str, Any], step: int, *, final: bool) -> dict[str, float]:
        """Runs what is due at `step` (everything, if `final`) and has no result yet; returns the new metrics.

        `params`: {RAW: the parameters, EMA: their average}, as far as `which` needs them.

        An evaluator that fails takes neither the others nor the training down: it is logged, and kept in `failed`, and
        so is one whose result cannot be written. On several processes an error of the program does end all, since one
        that goes on alone would wait for the others for ever.
        """
        due = self.due(step, final=final)
        if not due:
            return {}
        result = self.results(step)
        result["not_applicable"] |= self.not_applicable
        new: dict[str, float] = {}
        for name in [n for n in due if not self._is_known(n, result)]:
            start = sleep.awake()
            try:
                with Waiting(f"eval {name} at step {step}"):
                    metrics = self._run(name, params[self.which[name]], step, result)
            except errors.UserError as e:
                self._fail(name, e)
                continue
            except Exception as e:
                if jax.process_count() > 1:
                    raise
                self._fail(name, e)
                continue
            result["seconds"][name] = sleep.awake() - start
            result["settings"][name] = self.settings[name]
            new |= {full: metric.value for full, metric in metrics.items()}
            shown = ", ".join(
                " ".join(filter(None, (m.name, said(m.value, m.unit, m.interval, m.n), m.note and f"({m.note})")))
                for m in metrics.values()
            )
            say(f"eval {name} at step {step} ({result['seconds'][name]:.1f}s): {shown}")
            self._keep(name, step, result)  # as it comes: an evaluation that is stopped goes on where it was
        self.context.forget()
        self._keep(due[-1], step, result)
        return new

    def _keep(self, name: str, step: int, result: dict) -> None:
        """Writes evals/<step>.json and its items, with what another command has measured of the step in the meantime.

        Where that cannot be done, the evaluation that ran last has failed.
        """
        path = self.workdir / EVALS / f"{step}.json"
        theirs = {}
        if jax.process_index() == 0:
            with contextlib.suppress(StorageError):  # a bucket that is away: what this run measured is kept
                theirs = json.loads(remote.read_text(path) or "{}")
        if theirs.get("format") == RESULTS_FORMAT:
            for part in SECTIONS:
                others = {k: v for k, v in theirs[part].items() if k.partition("/")[0] not in self.settings}
                result[part] = others | result[part]
        try:
            self._keep_items(step)
            write_text(path, json.dumps(result, indent=1))
        except StorageError as e:
            self._fail(name, e)

    def _keep_items(self, step: int) -> None:
        """Writes evals/<step>.items.parquet: what is there of other evaluators, and what this run has measured."""
        if jax.process_index() or not self._items:
            return
        path, mine = items_file(self.workdir, step), {}
        for of_evaluator in self._items.values():
            mine |= of_evaluator
        made = items.table(mine)
        try:
            before = remote.read(path)
            made = items.join(items.without(items.from_bytes(before), self._items), made) if before else made
        except (StorageError, ValueError) as e:
            warn(f"{path} is made anew, without the items of other evaluations: {e}")
        write_bytes(path, items.to_bytes(made))

    def _fail(self, name: str, error: Exception) -> None:
        said = " ".join(str(error).split())
        said = said if isinstance(error, errors.UserError) else f"{type(error).__name__}: {said}"
        if os.environ.get("MAECLIP_TRACEBACK"):
            traceback.print_exception(error)
        if self.failed.get(name) != said:  # once, however often it is due
            warn(f"evaluation {name} failed: {said}")
        self.failed[name] = said
        self._warned.add(name)

    def _is_known(self, name: str, result: Mapping) -> bool:
        return name in result["seconds"] and result["settings"].get(name, self.settings[name]) == self.settings[name]

    def _run(self, name: str, params: Any, step: int, result: dict) -> dict[str, Metric]:
        metrics, self.context.running, unwritten = {}, name, None
        self._items[name] = {}
        for part in ("metrics", "about", "details", "pictures"):  # of other settings, if there were any
            result[part] = {k: v for k, v in result[part].items() if not k.startswith(f"{name}/")}
        for found in self._values(name, params):
            full = f"{name}/{getattr(found, 'name', '')}"
            if isinstance(found, Metric):
                metrics[full] = found.estimated()
                if found.items is not None:
                    self._items[name][full] = found.items
            elif isinstance(found, Detail):
                result["details"][full] = found.value
            elif isinstance(found, Picture):
                file = f"{step}/{name}-{found.name}.png"
                try:
                    result["pictures"][full] = _save_picture(self.workdir / EVALS, file, found.pixels_HxWx3)
                except StorageError as e:  # met by process 0 alone, which still has to take part in what follows
                    unwritten = unwritten or e
                self.show(step, full, found.pixels_HxWx3)
            else:
                raise errors.UserError(f"its run() gave a {type(found).__name__}; valid: Metric, Picture, Detail")
        if unwritten:
            raise unwritten
        self.better |= {full: metric.better for full, metric in metrics.items()}
        result["metrics"] |= {full: metric.value for full, metric in metrics.items()}
        result["about"] |= {full: metric.about() for full, metric in metrics.items()}
        return metrics

    def _values(self, name: str, params: Any):
        with errors.from_modules():
            yield from self.evaluators[name].run(params)

    def raise_failures(self) -> None:
        """UserError naming every evaluator that failed, if any did, and why, where that has not been said."""
        said = [
            f"evaluation {n} failed" + (", as its warning says" if n in self._warned else f": {e}")
            for n, e in self.failed.items()
        ]
        if said:
            raise errors.UserError("; ".join(said))


def _save_picture(folder: epath.Path, name: str, picture_HxWx3: np.ndarray) -> str:
    if jax.process_index() == 0:
        import io

        from PIL import Image

        buffer = io.BytesIO()
        Image.fromarray(picture_HxWx3).save(buffer, "PNG")
        write_bytes(folder / name, buffer.getvalue())
    return name


def _place(config, workdir: epath.Path) -> epath.Path:
    """The checkpoint to evaluate: that of `config.resume`, unless this only says where the run in `workdir` began."""
    if config.resume and read_config(workdir).get("resume") == config.resume:
        with contextlib.suppress(errors.UserError):  # it has none of its own yet
            return checkpoint.locate(workdir)
    return checkpoint.locate(config.resume or workdir)


def run(config, workdir: epath.PathLike, *, devices: Sequence | None = None) -> dict[str, float]:
    """Evaluates one checkpoint, the newest of `workdir` or `config.resume`. Same code and numbers as in training.

    A `resume` that config.json has too is where the run began: its own newest is evaluated, if it has one. Needs no
    training data. UserError, after all others have run, for evaluators that failed.
    """
    sleep.watch()
    workdir = make_workdir(workdir)
    folder, config = _place(config, workdir), config.copy_and_resolve_references()
    origin = folder.parent.parent
    find_files(config, origin)
    tokenizer = tokenizers.of(config)
    if tokenizer and (other := other_words(config, origin)):
        raise errors.UserError(f"{folder} was trained with other words: {other}; use --config={origin / CONFIG}")
    before = read_config(origin)
    if differ := before and model_differences(before, config):
        told = ", ".join(f"{name} {was!r} there and {is_!r} here" for name, (was, is_) in list(differ.items())[:4])
        raise errors.UserError(f"{folder} is of another model: {told}; use --config={origin / CONFIG}")
    model = setup(config, devices=devices)
    with jax.set_mesh(model.mesh), remote.patience(remote.RUN_SECONDS), outbox.opened():
        step, averaged = int(folder.name), checkpoint.keeps_average(folder)
        names = read_names(folder, workdir)
        runner = Runner(
            config, model.objective, model.mesh, tokenizer, workdir, lambda duration, what: 0, names, averaged,
            "" if os.fspath(origin) == os.fspath(workdir) else os.fspath(folder),
        )  # fmt: skip
        with Waiting(f"reading {folder}"):
            wanted = set(runner.which.values())
            params = {which: checkpoint.read_params(folder, model.params, which)[0] for which in sorted(wanted)}
        if averaged:
            say(average.SAID)
        metrics = runner.run_due(params, step, final=True)
    for name, reason in runner.not_applicable.items():
        say(f"eval {name}: n/a, {reason}")
    if not metrics and not runner.failed:
        say(f"{workdir / EVALS / f'{step}.json'} has all results of step {step}; delete it to evaluate again")
    runner.raise_failures()
    return metrics
