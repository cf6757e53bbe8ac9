"""THE loop: build state -> restore -> step / log / checkpoint / evaluate. Knows no objective.

Its order, for step n: 1 take batch n (already on the device), 2 dispatch step n, 3 fetch the metrics of step n-1, never n,
4 log, 5 checkpoint if due or if preemption was signalled, 6 evaluate if due, on the parameters just checkpointed, 7 after
the last step: final checkpoint and final evaluations (also when a restart finds only those missing).
"""

from __future__ import annotations

import collections
import json
import signal
import time
from collections.abc import Iterator, Mapping
from typing import Any

import jax
import numpy as np
from etils import epath

from maeclip_jax import checkpoint, durations, evaluate, flops, log, program, sharding
from maeclip_jax.data import pipeline, tokenizer
from maeclip_jax.errors import UserError

EXAMPLES = "examples"  # folder of per-process lists of the examples of every step, with config.log.examples


def run(config, workdir: epath.PathLike) -> None:
    """Trains `config` in `workdir`, continuing whatever is there. Returns when done or when preempted (state saved)."""
    workdir = epath.Path(workdir)
    words = tokenizer.make(config.tokenizer) if config.tokenizer.type else None
    epoch = pipeline.length(config.data)
    prog = program.build(config, epoch=epoch)
    with jax.set_mesh(prog.mesh):
        _Run(config, workdir, words, epoch, prog).loop()


class _Run:
    """The pieces of one run, and the loop over them."""

    def __init__(self, config, workdir: epath.Path, words, epoch: int | None, prog: program.Program):
        self.config, self.workdir, self.prog = config, workdir, prog

        def steps(duration: str, what: str) -> int:
            return durations.to_steps(duration, what, batch_size=prog.batch_size, epoch=epoch, total=prog.total_steps)

        self.log_every = max(1, steps(config.log.every, "log.every"))
        self.save_every = max(1, steps(config.checkpoint.every, "checkpoint.every"))
        self.runner = evaluate.Runner(config, prog.objective, prog.mesh, words, workdir, steps)
        self.words = words
        self.stop = _StopSignal()
        folder = workdir / "checkpoints"
        folder.mkdir(parents=True, exist_ok=True)
        self.saved = checkpoint.Checkpoints(
            folder,
            keep_last=config.checkpoint.keep_last,
            keep_every=steps(config.checkpoint.keep_every, "checkpoint.keep_every"),
            keep_best=config.checkpoint.keep_best,
            best=config.checkpoint.best,
            best_mode=config.checkpoint.best_mode,
        )

    def loop(self) -> None:
        prog, config = self.prog, self.config
        state, self.clock = self._start()
        first = int(state.step)
        self.log = log.Log(self.workdir, first)
        _write_config(self.workdir, config)
        for step, metrics in evaluate.read_all(self.workdir).items():
            self.saved.record(step, metrics)
        log.say(log.parameter_table(prog.abstract.params, prog.param_specs))
        self._evaluate(state, first)  # what a killed run still owed of the step it left
        if first < prog.total_steps:
            state = self._train(state, first)
        else:
            log.say(f"{self.workdir}: all {prog.total_steps} steps are done")
        if int(state.step) == prog.total_steps:
            self._evaluate(state, prog.total_steps, final=True)
        self._write_costs(int(state.step))
        self.saved.close()
        self.log.close()
        self.runner.raise_failures()

    # Start: workdir checkpoint, then config.resume, then config.init_from, then scratch.

    def _start(self) -> tuple[program.State, log.Clock]:
        prog, config = self.prog, self.config
        latest = self.saved.latest()
        clock = log.Clock()
        if latest is not None or config.resume:
            source = self.saved if latest is not None else checkpoint.Checkpoints(_checkpoints_of(config.resume))
            step = latest if latest is not None else source.latest()
            start = time.perf_counter()
            state, meta = source.restore(step, prog.abstract)
            if meta["batch_size"] != prog.batch_size:
                raise UserError(
                    f"the checkpoint of step {step} was trained with batch_size {meta['batch_size']}, the config says "
                    f"{prog.batch_size}: schedules and data order would change; set batch_size={meta['batch_size']}, "
                    "or start a new --workdir with config.init_from"
                )
            if meta["seed"] != config.seed:
                raise UserError(f"the checkpoint of step {step} has seed {meta['seed']}, the config says {config.seed}")
            if step > prog.total_steps:
                raise UserError(
                    f"the checkpoint is at step {step}, but total={config.total!r} is {prog.total_steps} steps"
                )
            clock = log.Clock(meta["seconds"])
            clock.add("restore", time.perf_counter() - start)
            log.say(f"continuing from step {step} of {prog.total_steps} ({source._manager.directory})")
            return state, clock
        state = prog.init()
        if config.init_from:
            params, report = checkpoint.init_params(config.init_from, tuple(config.init_rules), state.params)
            log.say(report)
            state = state.replace(params=params)
        return state, clock

    # The loop proper.

    def _train(self, state: program.State, first: int) -> program.State:
        prog, clock = self.prog, self.clock
        batches = pipeline.train(
            self.config.data, batch_size=prog.batch_size, seed=self.config.seed, start_example=first * prog.batch_size,
            tokenizer=self.words, process_index=jax.process_index(), process_count=jax.process_count(),
        )  # fmt: skip
        try:
            ahead = _Ahead(batches, prog, clock)
            with clock.phase("compile"):
                step = prog.step.lower(prog.abstract, ahead.shapes()).compile()
            self.memory = step.memory_analysis()
            self.peak, peak_source = flops.peak_per_device(self.config.model.compute.dtype)
            log.say(f"{flops.FORMULA}; {prog.flops_per_step:.3e} FLOPs a step; peak {self.peak:.3e} FLOP/s a device")
            log.say(f"peak: {peak_source}; {_describe_memory(self.memory)}")
            return self._steps(state, first, step, ahead)
        finally:
            batches.close()

    def _steps(self, state, first: int, step, ahead: _Ahead) -> program.State:
        prog, clock = self.prog, self.clock
        clock.start_loop()
        progress = log.Progress(first, prog.total_steps, prog.batch_size, prog.flops_per_step, self.peak, clock.seconds)
        trace = _ExampleTrace(self.workdir, first) if self.config.log.examples else None
        pending = None
        for n in range(first, prog.total_steps):
            batch, keys = ahead.next()  # 1
            state, metrics = step(state, batch)  # 2
            if trace:
                trace.write(n, keys)
            if pending:
                self._report(*pending, progress)  # 3, 4
            pending, done = (n + 1, metrics, keys), n + 1
            stopping = self.stop.agreed(done)
            if done % self.save_every == 0 or done == prog.total_steps or stopping:  # 5
                self._report(*pending, progress)  # a step that must not be saved is found before it is
                pending = None
                with clock.phase("checkpoint"):
                    self.saved.save(done, state, self._meta(done))
                    if stopping or done == prog.total_steps:
                        self.saved.wait()
                self._write_costs(done)
            if stopping:
                log.say(f"stopping was asked for: step {done} is saved; the same command continues from here")
                break
            self._evaluate(state, done)  # 6
        clock.stop_loop()
        if trace:
            trace.close()
        return state

    def _report(self, step: int, metrics: Mapping, keys: list[str], progress: log.Progress) -> None:
        """Fetches one step's metrics, guards against non-finite and bad data, logs if due."""
        values = {k: float(v) for k, v in jax.device_get(metrics).items()}
        self._guard(step, values, keys)
        if step % self.log_every and step != self.prog.total_steps and step != 1:
            return
        row = {f"train/{k}": v for k, v in values.items()}
        row |= progress.measure(step, self.clock.seconds) | log.device_memory()
        row["progress/examples_seen"] = step * self.prog.batch_size
        self.log.scalars(step, row)
        log.say(progress.line(step, row))

    def _guard(self, step: int, values: Mapping[str, float], keys: list[str]) -> None:
        if values["skipped_in_row"]:
            log.warn(
                f"step {step}: loss {values['loss']} or gradient norm {values['grad_norm']} is not finite; update skipped "
                f"({values['skipped']:.0f} so far); its examples: {', '.join(keys[:8])}, ..."
            )
        if values["skipped_in_row"] >= self.config.max_skipped_in_row:
            raise UserError(
                f"stopped: {values['skipped_in_row']:.0f} steps in a row had a non-finite loss or gradient, the last is "
                f"step {step} with examples {', '.join(keys[:8])}, ...; parameters are those of the last finite step; "
                "lower optim.lr, raise optim.warmup or set optim.clip_norm"
            )
        pipeline.check_bad(step * self.prog.batch_size, values["bad_records"], self.config.data.max_bad)

    def _evaluate(self, state: program.State, step: int, final: bool = False) -> bool:
        """Runs the evaluators due at `step` that have no result yet; True if any ran."""
        if step == 0:
            return False
        with self.clock.phase("eval"):
            metrics = self.runner.run_due(state.params, step, final=final or step == self.prog.total_steps)
        if metrics:
            self.log.scalars(step, metrics | {"progress/examples_seen": step * self.prog.batch_size})
            self.saved.record(step, metrics)
        return bool(metrics)

    def _meta(self, step: int) -> dict:
        return {
            "step": step,
            "examples_seen": step * self.prog.batch_size,
            "batch_size": self.prog.batch_size,
            "seed": self.config.seed,
            "seconds": self.clock.seconds,
        }

    def _write_costs(self, step: int) -> None:
        rows = [r for r in log.read_rows(self.workdir) if "perf/step_seconds" in r and r["step"] > 1]
        middle = {
            k: float(np.median([r[k] for r in rows if k in r])) for k in (rows[-1] if rows else ()) if "perf/" in k
        }
        log.write_costs(self.workdir, {
            "step": step, "examples_seen": step * self.prog.batch_size, "seconds": self.clock.seconds,
            "devices": jax.device_count(), "device_kind": jax.local_devices()[0].device_kind,
            "processes": jax.process_count(), "batch_size": self.prog.batch_size,
            "parameters": sum(x.size for x in jax.tree.leaves(self.prog.abstract.params)),
            "flops_per_step": self.prog.flops_per_step, "mfu_formula": flops.FORMULA,
            "peak_flops_per_device": flops.peak_per_device(self.config.model.compute.dtype)[1], "median": middle,
        })  # fmt: skip


class _Ahead:
    """Batches of the pipeline, placed on the device one step before they are needed, and the keys of their examples."""

    def __init__(self, batches: Iterator[dict], prog: program.Program, clock: log.Clock):
        self._batches, self._prog, self._clock = batches, prog, clock
        self._queue: collections.deque = collections.deque()
        self._fill()

    def _fill(self) -> None:
        with self._clock.phase("input_wait"):
            host = next(self._batches)
        missing = [name for name in self._prog.inputs if name not in host]
        if missing:
            raise UserError(f"the data's ops must keep {missing[0]!r} for this objective; they keep {sorted(host)}")
        arrays = {name: host[name] for name in (*self._prog.inputs, "_bad")}
        for name, want in self._prog.inputs.items():
            have = arrays[name]
            if have.shape[1:] != want.shape[1:] or have.dtype != want.dtype:
                raise UserError(
                    f"batch {name!r} is {have.dtype} {have.shape[1:]} per example, the model takes "
                    f"{np.dtype(want.dtype)} {want.shape[1:]}: see data.train.ops and the model's towers"
                )
        self._queue.append((sharding.place(arrays, self._prog.mesh), [str(k) for k in host["_key"]]))

    def shapes(self) -> dict[str, jax.ShapeDtypeStruct]:
        """Shapes and shardings of a placed batch."""
        batch, _ = self._queue[0]
        return {k: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=x.sharding) for k, x in batch.items()}

    def next(self) -> tuple[dict, list[str]]:
        """The next placed batch; another one is fetched meanwhile."""
        out = self._queue.popleft()
        self._fill()
        return out


class _StopSignal:
    """SIGTERM (preemption) or the first Ctrl-C: finish the step, save, leave. All processes agree on the step."""

    def __init__(self):
        self._asked = False
        if jax.process_count() == 1:
            signal.signal(signal.SIGTERM, self._ask)
            signal.signal(signal.SIGINT, self._ask)

    def _ask(self, number, frame) -> None:
        self._asked = True
        signal.signal(signal.SIGINT, signal.default_int_handler)  # a second Ctrl-C means it

    def agreed(self, step: int) -> bool:
        """Whether to stop after `step`, the same answer on every process."""
        if jax.process_count() == 1:
            return self._asked
        from jax.experimental import multihost_utils

        return multihost_utils.reached_preemption_sync_point(step)


class _ExampleTrace:
    """One line per step with the keys of this process's examples: the proof that no sample is lost or repeated."""

    def __init__(self, workdir: epath.Path, first: int):
        folder = workdir / EXAMPLES
        folder.mkdir(parents=True, exist_ok=True)
        name = f"{first:08}-of-{jax.process_count()}-{jax.process_index()}.jsonl"
        self._file = (folder / name).open("w")

    def write(self, step: int, keys: list[str]) -> None:
        self._file.write(json.dumps({"step": step, "keys": keys}) + "\n")
        self._file.flush()

    def close(self) -> None:
        self._file.close()


def _checkpoints_of(source: str) -> epath.Path:
    return checkpoint.locate(source).parent.parent


def _write_config(workdir: epath.Path, config) -> None:
    if jax.process_index() == 0:
        (workdir / "config.json").write_text(json.dumps(json.loads(config.to_json_best_effort()), indent=1))


def _describe_memory(analysis: Any) -> str:
    if analysis is None:
        return "the compiler does not tell memory here"
    gib = [getattr(analysis, f"{k}_size_in_bytes") / 2**30 for k in ("argument", "temp")]
    return f"per device {gib[0]:.2f} GiB of arguments and {gib[1]:.2f} GiB of temporaries (compiler's figures)"
