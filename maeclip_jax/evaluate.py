"""Runs the evaluators of a config on parameters: when, under which name, timed, written down. The loop calls it too.

What an evaluator may ask for is `Functions`: jitted functions of the objective that hide device, mesh and processes.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import jax
import numpy as np
from etils import epath

from maeclip_jax import checkpoint, errors, evals, log, program, sharding
from maeclip_jax.data import pipeline, source, tokenizer

FOLDER = "evals"


class Functions:
    """The protocol of `evals.protocol.Functions` on an objective and a mesh.

    Batches hold this process's rows; results are numpy arrays of the real rows of all processes in global order.
    """

    def __init__(self, objective, mesh, words):
        self.objective, self.mesh, self.tokenizer = objective, mesh, words
        self.process_index, self.process_count = jax.process_index(), jax.process_count()
        self._parts = sharding.batch_shards(mesh)
        self._sources: dict[str, Any] = {}

        def method(name):
            return jax.jit(lambda params, batch: objective.apply({"params": params}, batch, method=name))

        def seeded(name, **kwargs):
            def call(params, batch, seed):
                rngs = {"mask": jax.random.key(seed)}
                return objective.apply({"params": params}, batch, rngs=rngs, method=name, **kwargs)

            return jax.jit(call)

        self._embed, self._encode = method("embed"), method("encode")
        self._loss, self._reconstruct = seeded("__call__", train=False), seeded("reconstruct")

    def source(self, config_data: Mapping) -> Any:
        """The data source of a data config; opened once."""
        key = repr(config_data["source"])
        if key not in self._sources:
            self._sources[key] = source.make(config_data["source"])
        return self._sources[key]

    def batches(self, config_data: Mapping, batch_size: int) -> Iterator[dict]:
        """One pass over the data; `batch_size` rows over all processes, the last batch filled up and masked."""
        return pipeline.evaluate(
            config_data, batch_size=batch_size, tokenizer=self.tokenizer,
            process_index=self.process_index, process_count=self.process_count,
        )  # fmt: skip

    def rows(self, batch: Mapping[str, Any]) -> dict[str, np.ndarray]:
        """The arrays of a batch as they are, of all processes, without filling rows."""
        names = [k for k in batch if not k.startswith("_")]
        mask = _mask(batch, names)
        arrays = {k: np.asarray(batch[k]) for k in names} | {"_mask": mask}
        if self.process_count > 1:
            from jax.experimental import multihost_utils

            arrays = {k: np.concatenate(np.asarray(multihost_utils.process_allgather(v))) for k, v in arrays.items()}
        mask = arrays.pop("_mask").astype(bool)
        return {k: v[mask] for k, v in arrays.items()}

    def embed(self, params: Any, batch: Mapping) -> dict[str, np.ndarray]:
        """Pooled embeddings [B, D] of the modalities in the batch."""
        return self._on_device(self._embed, params, batch)

    def encode(self, params: Any, batch: Mapping) -> dict[str, Any]:
        """Dense `Tokens` per stream."""
        return self._on_device(self._encode, params, batch)

    def reconstruct(self, params: Any, batch: Mapping, seed: int) -> dict[str, np.ndarray]:
        """What the objective's decoder fills in, with masks drawn from `seed`."""
        return self._on_device(self._reconstruct, params, batch, seed)

    def loss(self, params: Any, batch: Mapping, seed: int) -> dict[str, float]:
        """The objective's loss and metrics on a batch without filling rows."""
        inputs = self._inputs(batch)
        rows = len(next(iter(inputs.values()))) * self.process_count
        if rows % self._parts:  # a batch loss cannot be filled up: every device computes all of it
            whole = jax.NamedSharding(self.mesh, jax.P())
            inputs = self.rows(inputs)
            placed = {k: jax.make_array_from_callback(v.shape, whole, v.__getitem__) for k, v in inputs.items()}
        else:
            placed = sharding.place(inputs, self.mesh)
        loss, parts = self._loss(params, placed, np.int32(seed))
        return {k: float(v) for k, v in jax.device_get({"loss": loss, **parts}).items()}

    def _inputs(self, batch: Mapping) -> dict[str, np.ndarray]:
        return {k: np.asarray(batch[k]) for k in self.objective.inputs() if k in batch}

    def _on_device(self, function: Callable, params: Any, batch: Mapping, seed: int | None = None) -> Any:
        arrays = self._inputs(batch)
        mask = _mask(batch, list(arrays))
        # Every device gets as many rows as every other; what is added is masked out again.
        fill = -len(mask) % (self._parts // self.process_count)
        arrays = {k: np.concatenate([v, np.zeros((fill, *v.shape[1:]), v.dtype)]) for k, v in arrays.items()}
        mask = np.concatenate([mask, np.zeros(fill, bool)])
        out = function(params, sharding.place(arrays, self.mesh), *(() if seed is None else (np.int32(seed),)))
        if self.process_count > 1:
            from jax.experimental import multihost_utils

            out = multihost_utils.process_allgather(out, tiled=True)
            mask = np.concatenate(np.asarray(multihost_utils.process_allgather(mask)))
        return jax.tree.map(lambda x: np.asarray(x)[mask], out)


def _mask(batch: Mapping, names: list[str]) -> np.ndarray:
    if "_mask" in batch:
        return np.asarray(batch["_mask"], bool)
    return np.ones(len(batch[names[0]]), bool)


class Runner:
    """The evaluators of a config. `steps` converts a duration of the config to steps.

    Results of step n are in `evals/<n>.json`, pictures beside it; what is there already is not computed again.
    """

    def __init__(self, config, objective, mesh, words, workdir: epath.Path, steps: Callable[[str, str], int]):
        self.workdir, self.evaluators, self.every, self.not_applicable = workdir, {}, {}, {}
        self.failed: dict[str, str] = {}
        self._known: dict[str, Any] = {}
        fns = Functions(objective, mesh, words)
        for name, entry in config.evals.items():
            settings = source.plain(entry)
            self.every[name] = steps(settings.pop("every"), f"evals.{name}.every")
            try:
                self.evaluators[name] = evals.make(settings.pop("type"), fns, **settings)
            except evals.NotApplicable as reason:
                self.not_applicable[name] = str(reason)

    def results(self, step: int) -> dict:
        """What is known of `step`: evals/<step>.json, or an empty result."""
        if self._known.get("step") != step:
            path = self.workdir / FOLDER / f"{step}.json"
            empty = {"step": step, "metrics": {}, "details": {}, "pictures": {}, "not_applicable": {}, "seconds": {}}
            self._known = empty | (json.loads(path.read_text()) if path.exists() else {})
        return self._known

    def forget_after(self, step: int) -> None:
        """Removes the results of later steps: a run that continues from `step` is going to make them again."""
        if jax.process_index() == 0:
            for later in [p for p in _results(self.workdir) if int(p.stem) > step]:
                later.unlink()
        if jax.process_count() > 1:
            from jax.experimental import multihost_utils

            multihost_utils.sync_global_devices("forget_after")

    def due(self, step: int, *, final: bool) -> list[str]:
        """Evaluations whose time is `step`; all of them, if `final`."""
        return [n for n in self.evaluators if final or (self.every[n] and step % self.every[n] == 0)]

    def run_due(self, params: Any, step: int, *, final: bool) -> dict[str, float]:
        """Runs what is due at `step` (everything, if `final`) and has no result yet; returns the new metrics.

        An evaluator that fails with a UserError does not take the others down: it is logged, and kept in `failed`.
        """
        due = self.due(step, final=final)
        if not due:
            return {}
        result = self.results(step) | {"not_applicable": self.not_applicable}
        new: dict[str, float] = {}
        for name in [n for n in due if n not in result["seconds"]]:
            start = time.perf_counter()
            try:
                metrics = self._run(name, params, step, result)
            except errors.UserError as e:
                self.failed[name] = str(e)
                log.warn(f"evaluation {name} failed: {e}")
                continue
            result["seconds"][name] = time.perf_counter() - start
            new |= metrics
            shown = ", ".join(f"{k.removeprefix(name + '/')} {v:.4g}" for k, v in metrics.items())
            log.say(f"eval {name} at step {step} ({result['seconds'][name]:.1f}s): {shown}")
        log.write_text(self.workdir / FOLDER / f"{step}.json", json.dumps(result, indent=1))
        return new

    def _run(self, name: str, params: Any, step: int, result: dict) -> dict[str, float]:
        metrics = {}
        for key, value in self.evaluators[name].run(params):
            full = f"{name}/{key}"
            if isinstance(value, np.ndarray) and value.ndim == 3:
                result["pictures"][full] = _save_picture(self.workdir / FOLDER, f"{step}/{name}-{key}.png", value)
            elif isinstance(value, (dict, list)):
                result["details"][full] = value
            else:
                metrics[full] = float(value)
        result["metrics"] |= metrics
        return metrics

    def raise_failures(self) -> None:
        """UserError naming every evaluator that failed, if any did."""
        if self.failed:
            raise errors.UserError("; ".join(f"evaluation {n} failed: {e}" for n, e in self.failed.items()))


def _save_picture(folder: epath.Path, name: str, picture_HxWx3: np.ndarray) -> str:
    if jax.process_index() == 0:
        import io

        from PIL import Image

        buffer = io.BytesIO()
        Image.fromarray(picture_HxWx3).save(buffer, "PNG")
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(buffer.getvalue())
    return name


def _results(workdir: epath.Path) -> list[epath.Path]:
    folder = workdir / FOLDER
    return [p for p in folder.glob("*.json") if p.stem.isdigit()] if folder.exists() else []


def read_all(workdir: epath.PathLike) -> dict[int, dict[str, float]]:
    """{step: metrics} of every evaluation in a workdir."""
    found = [json.loads(p.read_text()) for p in _results(epath.Path(workdir))]
    return {r["step"]: r["metrics"] for r in sorted(found, key=lambda r: r["step"])}


def run(config, workdir: epath.PathLike, *, devices: Sequence | None = None) -> dict[str, float]:
    """Evaluates one checkpoint, the newest of `workdir` or `config.resume`. Same code and numbers as in training."""
    workdir = log.make_workdir(workdir)
    words = tokenizer.of(config)
    prog = program.build(config, epoch=pipeline.length(config.data), devices=devices)
    folder = checkpoint.locate(config.resume or workdir)
    with jax.set_mesh(prog.mesh):
        params = checkpoint.read_params(folder, prog.abstract.params)
        step = int(folder.name)
        runner = Runner(config, prog.objective, prog.mesh, words, workdir, lambda duration, what: 0)
        metrics = runner.run_due(params, step, final=True)
    for name, reason in runner.not_applicable.items():
        log.say(f"eval {name}: n/a, {reason}")
    if not metrics and not runner.failed:
        log.say(f"{workdir / FOLDER / f'{step}.json'} has all results of step {step}; delete it to evaluate again")
    runner.raise_failures()
    return metrics
