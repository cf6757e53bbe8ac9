"""What evaluators may ask for (`evals.protocol.Context`), on an objective and a mesh.

Jitted functions of the objective that hide the device, the mesh and the other processes; and features of whole data
sets, made once for all evaluators that need the same ones.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any

import jax
import numpy as np

from maeclip_jax import errors
from maeclip_jax.data import pipeline, source
from maeclip_jax.data.ahead import scan
from maeclip_jax.evals.protocol import key_rows, select
from maeclip_jax.parallel import sharding
from maeclip_jax.parallel.terminal import Progress


class Surroundings:
    """The protocol of `evals.protocol.Context` on an objective and a mesh.

    Batches hold this process's rows; results are numpy arrays of the real rows of all processes in global order.
    `running` names the evaluator whose progress is shown.
    """

    def __init__(self, objective, mesh, tokenizer, names: Mapping[str, list[str]] | None = None):
        self.objective, self.mesh, self.tokenizer, self.names = objective, mesh, tokenizer, dict(names or {})
        self.process_index, self.process_count = jax.process_index(), jax.process_count()
        self.running = "evaluation"
        self._parts = sharding.batch_shards(mesh)
        self._opened: dict[str, pipeline.Data] = {}
        self._sources: dict[str, Any] = {}
        self._wanted: dict[str, list[str]] = {}  # data set -> poolings that some evaluator is going to ask for
        self._held: dict[str, dict[str, np.ndarray]] = {}  # data set -> features of `_held_params`
        self._held_params: Any = None

        def method(name):
            return self.compile(
                lambda objective, params, batch: objective.apply({"params": params}, batch, method=name)
            )

        def seeded(name, **kwargs):
            def call(objective, params, batch, seed):
                rngs = {"mask": jax.random.key(seed)}
                return objective.apply({"params": params}, batch, rngs=rngs, method=name, **kwargs)

            return call

        self._embed, self._encode = method("embed"), method("encode")
        words = tokenizer.vocab_size if tokenizer else None
        self._reconstruct, loss = self.compile(seeded("reconstruct", words=words)), seeded("__call__", train=False)
        self._loss = sharding.jit(lambda params, batch, seed: loss(objective, params, batch, seed), mesh)

    def source(self, config_data: Mapping) -> Any:
        """The data source of a data config."""
        return self._open(config_data).source

    def records(self, config_data: Mapping, indices: Iterable[int]) -> Iterator[dict]:
        """The records of a source at `indices`, in turn."""
        return scan(self.source(config_data), indices)

    def _open(self, config_data: Mapping) -> pipeline.Data:
        """The data of a config; opened once."""
        key = _key(config_data)
        if key not in self._opened:
            self._opened[key] = pipeline.open(config_data, self._make)
        return self._opened[key]

    def _make(self, config_source: Any) -> Any:
        """A source, shared by all data configs that name the same one."""
        key = _key(config_source)
        if key not in self._sources:
            self._sources[key] = source.make(config_source)
        return self._sources[key]

    def batches(self, config_data: Mapping, batch_size: int) -> Iterator[dict]:
        """One pass over the data; `batch_size` rows over all processes, the last batch filled up and masked."""
        with self.progress("pictures", len(self.source(config_data))) as progress:
            for batch in self._open(config_data).evaluate(
                batch_size=batch_size, tokenizer=self.tokenizer,
                process_index=self.process_index, process_count=self.process_count,
            ):  # fmt: skip
                yield batch
                progress.update(batch_size)

    def train_batches(self, config_data: Mapping, batch_size: int, seed: int) -> Iterator[dict]:
        """Endless batches in a shuffled order, augmented as the ops say; close() it."""
        return self._open(config_data).train(
            batch_size=batch_size, seed=seed, tokenizer=self.tokenizer,
            process_index=self.process_index, process_count=self.process_count,
        )  # fmt: skip

    def progress(self, what: str, total: int) -> Progress:
        """A context whose `update(n)` says, every 15 s, how far the running evaluator has come."""
        return Progress(f"eval {self.running}", what, total)

    def rows(self, batch: Mapping[str, Any]) -> dict[str, np.ndarray]:
        """The arrays of a batch as they are, of all processes, without filling rows."""
        names = [k for k in batch if not k.startswith("_")]
        valid = _valid(batch, names)
        arrays = {k: np.asarray(batch[k]) for k in names} | {"_valid": valid}
        if self.process_count > 1:
            from jax.experimental import multihost_utils

            arrays = {k: np.concatenate(np.asarray(multihost_utils.process_allgather(v))) for k, v in arrays.items()}
        valid = arrays.pop("_valid").astype(bool)
        return {k: v[valid] for k, v in arrays.items()}

    def want(self, config_data: Mapping, *pools: str) -> None:
        """Announces `features`, so that one pass over the data makes all that is wanted of it."""
        wanted = self._wanted.setdefault(_key(config_data), [])
        wanted += [p for p in pools if p not in wanted]

    def features(self, params: Any, config_data: Mapping, batch_size: int, pool: str) -> dict[str, np.ndarray]:
        """A whole data set: "image" float32 [N, D], pooled, "key", what else the ops keep but pictures and texts."""
        if self._held_params is not params:
            self.forget()
            self._held_params = params
        key = _key(config_data)
        if pool not in self._held.get(key, {}):
            self.want(config_data, pool)
            # All that was announced; what an earlier evaluator asked for stays, what was made is not made again.
            held = self._held.setdefault(key, {})
            held |= self._pass(params, config_data, batch_size, [p for p in self._wanted[key] if p not in held])
        held = self._held[key]
        return {"image": held[pool]} | {k.removeprefix("row/"): v for k, v in held.items() if k.startswith("row/")}

    def forget(self) -> None:
        """Lets go of features and of the parameters they belong to."""
        self._held, self._held_params = {}, None

    def _pass(self, params: Any, config_data: Mapping, batch_size: int, pools: list[str]) -> dict[str, np.ndarray]:
        def pooled(objective, params, batch):
            return objective.apply({"params": params}, batch, tuple(pools), method="features")

        function, parts = self.compile(pooled), []
        for batch in self.batches(config_data, batch_size):
            image = select(batch, "image", who=self.running)
            others = {k: v for k, v in batch.items() if k not in ("image", "text") and not k.startswith("_")}
            key = key_rows(batch, len(image["_valid"]))
            rows = self.rows(others | {"key": key, "_valid": image["_valid"]})
            with errors.from_modules():
                made = function(params, image)
            parts.append(
                {k: np.asarray(v, np.float32) for k, v in made.items()} | {f"row/{k}": v for k, v in rows.items()}
            )
        if not parts or not len(parts[0][pools[0]]):
            raise errors.UserError(f"{self.running} found no pictures in its data; check the split")
        return {k: np.concatenate([p[k] for p in parts]) for k in parts[0]}

    def compile(self, function: Callable) -> Callable:
        """`function(objective, params, arrays, *rest) -> tree of [B, ...]`, to be called as (params, batch, *rest).

        Jitted; devices, processes and filling rows are hidden. `rest`: arrays that every process has in full.
        """
        jitted = sharding.jit(lambda params, arrays, *rest: function(self.objective, params, arrays, *rest), self.mesh)

        def call(params: Any, batch: Mapping, *rest) -> Any:
            arrays = {k: np.asarray(v) for k, v in batch.items() if not k.startswith("_")}
            return self._on_device(jitted, params, arrays, _valid(batch, list(arrays)), rest)

        return call

    def embed(self, params: Any, batch: Mapping) -> dict[str, np.ndarray]:
        """Pooled embeddings [B, D] of the modalities in the batch."""
        return self._embed(params, self._inputs(batch))

    def encode(self, params: Any, batch: Mapping) -> dict[str, Any]:
        """Dense `Tokens` per stream."""
        return self._encode(params, self._inputs(batch))

    def reconstruct(self, params: Any, batch: Mapping, seed: int) -> dict[str, np.ndarray]:
        """What the objective's decoder fills in, with masks drawn from `seed`."""
        return self._reconstruct(params, self._inputs(batch), np.int32(seed))

    def loss(self, params: Any, batch: Mapping, seed: int) -> dict[str, float]:
        """The objective's loss and metrics on a batch without filling rows."""
        inputs = {k: v for k, v in self._inputs(batch).items() if not k.startswith("_")}
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
        return {k: np.asarray(batch[k]) for k in (*self.objective.inputs(), "_valid") if k in batch}

    def _on_device(self, function: Callable, params: Any, arrays: Mapping, valid: np.ndarray, rest: tuple) -> Any:
        # Every device gets as many rows as every other; what is added is masked out again.
        fill = -len(valid) % (self._parts // self.process_count)
        arrays = {k: np.concatenate([v, np.zeros((fill, *v.shape[1:]), v.dtype)]) for k, v in arrays.items()}
        valid = np.concatenate([valid, np.zeros(fill, bool)])
        out = function(params, sharding.place(arrays, self.mesh), *rest)
        if self.process_count > 1:
            from jax.experimental import multihost_utils

            out = multihost_utils.process_allgather(out, tiled=True)
            valid = np.concatenate(np.asarray(multihost_utils.process_allgather(valid)))
        return jax.tree.map(lambda x: np.asarray(x)[valid], out)


def _key(config: Any) -> str:
    """The same text for the same config; sources may be given as objects, which are told apart by identity."""
    if hasattr(config, "to_dict"):
        config = config.to_dict()
    return json.dumps(config, sort_keys=True, default=lambda x: source.plain(x) if hasattr(x, "keys") else repr(x))


def _valid(batch: Mapping, names: list[str]) -> np.ndarray:
    if "_valid" in batch:
        return np.asarray(batch["_valid"], bool)
    return np.ones(len(batch[names[0]]), bool)
