"""THE loop: build state -> restore -> step / log / checkpoint / evaluate. Knows no objective.

Its order, for step n: 1 take batch n (already on the device), 2 dispatch step n, 3 fetch the metrics of step n-1, never
n, 4 log, 5 checkpoint if due or if preemption was signalled, 6 evaluate if due, on the parameters just checkpointed,
7 after the last step: final checkpoint and final evaluations (also when a restart finds only those missing).
"""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence

import jax
from etils import epath

from maeclip_jax import remote
from maeclip_jax.config import plain
from maeclip_jax.data import caption_length, pipeline
from maeclip_jax.data import tokenizer as tokenizers
from maeclip_jax.data.batches import check_bad
from maeclip_jax.errors import UserError, storage, unknown
from maeclip_jax.errors.storage import StorageError
from maeclip_jax.parallel import chips, sharding, sleep, watchdog
from maeclip_jax.parallel.machine import versions
from maeclip_jax.parallel.terminal import Waiting, say, warn
from maeclip_jax.remote import deadline, outbox
from maeclip_jax.run import agreement, average, evaluate, flops, log, microbatch, sinks, startup, storage_bill, summary
from maeclip_jax.run.costs import write_costs
from maeclip_jax.run.feed import Feed
from maeclip_jax.run.origin import Beginning
from maeclip_jax.run.owner import Owner
from maeclip_jax.run.profile import Profile
from maeclip_jax.run.saving import Checkpoints
from maeclip_jax.run.step import State, build
from maeclip_jax.run.stop import GRACE_SECONDS, StopSignal, leave
from maeclip_jax.run.throughput import Throughput
from maeclip_jax.run.trace import ExampleTrace
from maeclip_jax.workdir import (
    CHECKPOINTS,
    CONFIG,
    make_workdir,
    read_config,
    read_names,
    read_results,
    write_names,
    write_text,
)
from maeclip_jax.workdir.claim import claim, claim_data, find_files

_FLUSH_SECONDS = 10.0  # how long a checkpoint waits for rows that are on their way into a bucket


def run(
    config,
    workdir: epath.PathLike,
    *,
    devices: Sequence | None = None,
    start: startup.Startup | None = None,
    limits: watchdog.Limits | None = None,
    profile: tuple[int, int] | None = None,
    grace: float = GRACE_SECONDS,
) -> bool:
    """Trains `config` in `workdir`, continuing whatever is there, on `devices` (default: all).

    `start`: what starting has taken so far; `limits`: when a step is said to stall; `profile`: the
    first and the last step to take a profile of; `grace`: how many seconds after SIGTERM or Ctrl-C the process ends,
    also if its storage does not answer, where workdir or data are in a bucket (0: it waits).
    Returns True when done, False when it was asked to stop and has saved. UserError for what the config asks and cannot
    have, for too many bad records, for too many non-finite steps in a row, and for evaluations that failed.
    """
    sleep.watch()
    workdir = make_workdir(workdir)
    config = config.copy_and_resolve_references()  # which will name the copies of files that the workdir keeps
    with Owner(workdir) as owner:
        find_files(config, workdir)
        tokenizer = tokenizers.of(config)
        data = pipeline.open(config.data)
        with Waiting("reading the first records"):
            deadline.look(made for _, made in data.sources)
        built = build(config, epoch=data.length, devices=devices)
        peak = chips.peak_per_device(config.model.compute.dtype)  # measured on one device, so before the mesh is set
        away = remote.is_remote(workdir) or any(getattr(made, "remote", False) for _, made in data.sources)
        with jax.set_mesh(built.mesh), StopSignal(grace if away else 0) as stop:
            _Run(config, workdir, owner, tokenizer, data, built, peak, stop, start, limits, profile).loop()
            return not stop.called


class _Run:
    """The pieces of one run, and the loop over them."""

    def __init__(
        self, config, workdir: epath.Path, owner: Owner, tokenizer, data: pipeline.Data, built,
        peak: tuple[float | None, str], stop, start, limits, profile,
    ):  # fmt: skip
        self.config, self.workdir, self.built, self.data = config, workdir, built, data
        self.tokenizer, self.peak, self.stop, self.owner = tokenizer, peak, stop, owner
        self.start, self.limits = start or startup.Startup(0), limits or watchdog.Limits()

        def steps(duration: str, what: str) -> int:
            return built.steps(duration, what, epoch=data.length)

        self.doubted, self.under_way = False, False
        self.profile = Profile(workdir, profile, built.total_steps)
        self.sinks = sinks.check(config.log.get("sinks", sinks.DEFAULT))
        best = config.checkpoint.best.partition("/")[0]
        averaged = bool(average.decay_of(config.optim))
        known = average.evaluations(config.evals, averaged)
        if best and best not in known:
            raise unknown("evaluation in checkpoint.best:", best, sorted(known))
        self.best = best if config.checkpoint.keep_best else ""  # each of its evaluations needs a checkpoint
        self.log_every = max(1, steps(config.log.every, "log.every"))
        self.save_every = max(1, steps(config.checkpoint.every, "checkpoint.every"))
        self.saved = Checkpoints(
            workdir / CHECKPOINTS,
            keep_last=config.checkpoint.keep_last,
            keep_every=steps(config.checkpoint.keep_every, "checkpoint.keep_every"),
            keep_best=config.checkpoint.keep_best,
            best=config.checkpoint.best,
        )
        stop.late = lambda seconds: leave(seconds, self.saved.said())
        latest = self.saved.latest()
        self.saved.refuse_going_back(config.resume, workdir)
        self.before = read_config(workdir) if latest is not None else {}
        average.check_continued(config.optim, self.before, workdir)
        self.text = claim(config, workdir, self.before)
        claim_data(data.account(built.batch_size), workdir, continued=latest is not None)
        names = write_names(workdir, data.names, built.objective) or read_names(config.resume)
        self.runner = evaluate.Runner(config, built.objective, built.mesh, tokenizer, workdir, steps, names, averaged)
        self.runner.raise_failures()  # now, and not after hours of training
        self.bill = storage_bill.of_run(
            config, data, built, self.runner, self.save_every, processes=jax.process_count(), workdir=workdir
        )

    def loop(self) -> None:
        """The whole run. UserError for what stops it, StorageError with what is saved and how to go on.

        That is `Away` where a run under way gave up waiting for a storage, which may be back later.
        """
        try:
            self._loop()
        except Exception as e:
            failure = e if isinstance(e, UserError) else storage.met(e)
            if failure is None:
                raise
            safe = self.saved.safe()  # what was being saved is worth having, whatever went wrong
            if not isinstance(failure, StorageError):
                raise
            raise storage.of_a_run(failure, safe, self.under_way) from e
        self.runner.raise_failures()

    def _loop(self) -> None:
        begin = Beginning(self.config, self.built, self.data.length, self.tokenizer, self.saved, self.before)
        state, self.clock, self.asked = begin.state(self.start)
        first = int(state.step)
        self.runner.forget_after(first)
        self.under_way = True
        with remote.patience(remote.RUN_SECONDS), outbox.opened():
            self._go_on(state, first)

    def _go_on(self, state: State, first: int) -> None:
        """All that follows the start, in which a storage that is away is waited for."""
        built, workdir = self.built, self.workdir
        self.log = log.Log(workdir, first, self.sinks, plain(self.config))
        self.runner.show = self.log.picture
        write_text(workdir / CONFIG, self.text)  # every process has read the old one: they met in forget_after
        for result in read_results(workdir)[0]:
            better = {name: about["better"] for name, about in result["about"].items()}
            self.saved.record(result["step"], result["metrics"], better)
            if result["step"] == first:  # a kill may have come between the evaluation and its row
                self.log.scalars(first, result["metrics"])
        say(summary.parameter_table(built.abstract.params))
        devices = summary.describe_devices(built.mesh)
        say(f"{devices}; {built.total_steps} steps of {built.batch_size} examples; {workdir}")
        if self.config.evals and built.abstract.ema is not None:
            say(average.SAID)
        if slow := summary.slow_dtype(built.mesh, self.config.model.compute.dtype):
            warn(slow)
        for idle in summary.without_effect(self.config, built.rate, built.total_steps):
            warn(idle)
        # A run that is continued has the data and the words of before, which `claim` has compared.
        if self.tokenizer and not self.before and first < built.total_steps and jax.process_index() == 0:
            with Waiting("counting the tokens of captions"):
                cut = self.data.cut_captions(self.tokenizer)
            if cut.texts:
                say(f"captions of the first {caption_length.SAMPLE:,} records: {cut}")
        self._evaluate(state, first)  # what a killed run still owed of the step it left
        if first < built.total_steps:
            state = self._train(state, first)
        else:
            say(f"{workdir}: all {built.total_steps} steps are done")
        self._write_costs(int(state.step))
        self.saved.close()
        self.log.close()

    # The loop proper.

    def _train(self, state: State, first: int) -> State:
        built, clock = self.built, self.clock
        batches = self.data.train(
            batch_size=built.batch_size, seed=self.config.seed, start_example=first * built.batch_size,
            tokenizer=self.tokenizer, process_index=jax.process_index(), process_count=jax.process_count(),
        )  # fmt: skip
        if batches.how:
            say(f"data are read in {batches.how}")
        try:
            with Waiting("waiting for the first batch"):
                ahead = Feed(batches, built, clock)
            with clock.phase("compile"), Waiting("compiling the training step"):
                self.seed = built.seeded()
                parts, step = microbatch.compiled(built, built.abstract, ahead.shapes() | self.seed)
            with clock.phase("compile"), Waiting("waiting for the other processes to compile"):
                agreement.meet()
            say(f"{flops.FORMULA}; {built.flops_per_step:.3e} FLOPs a step")
            peak, memory = chips.peak_text(*self.peak), summary.memory_line(step.memory_analysis())
            say(f"peak FLOP/s of a device: {peak}; {memory}{microbatch.said(built, parts)}")
            with watchdog.Watchdog(self.limits, clock.look) as dog, self.profile:
                return self._steps(state, first, step, ahead, dog)
        finally:
            batches.close()

    def _steps(self, state, first: int, step, ahead: Feed, dog: watchdog.Watchdog) -> State:
        built, clock = self.built, self.clock
        clock.start_loop()
        progress = Throughput(
            first,
            built.total_steps,
            built.batch_size,
            built.flops_per_step,
            self.peak[0],
            built.mesh.size,
            chips.count(built.mesh.size, jax.local_devices()[0].device_kind),
            clock.seconds,
        )
        trace = ExampleTrace(self.workdir, first) if self.config.log.examples else None
        pending = None
        for n in range(first, built.total_steps):
            dog.beat(n + 1)
            batch, keys = ahead.next()  # 1
            state, metrics = self.profile(n + 1, step, state, batch | self.seed)  # 2
            if trace:
                trace.write(n, keys)
            if pending:
                self._report(*pending, progress)  # 3, 4
            pending, done = (n + 1, metrics, keys), n + 1
            stopping = self.stop.agreed(done)
            due = self.runner.due(done, final=done == built.total_steps)
            saving = done % self.save_every == 0 or done == built.total_steps or stopping or self.saved.lost(done)
            saving = saving or self.best in due
            if saving or due:
                self._report(*pending, progress)  # a step that must not be saved is found before it is
                pending = None
            if saving:  # 5
                self.owner.check()
                if stopping:
                    self.saved.announce(done)
                self.log.flush()  # rows up to a checkpoint are never lost
                if trace:
                    trace.flush()
                outbox.flush(_FLUSH_SECONDS)
                with clock.phase("checkpoint"):
                    self.saved.save(done, state, self._meta(done))
                    while (stopping or done == built.total_steps) and self.saved.owes():
                        self.saved.save(done, state, self._meta(done))
                self._write_costs(done)
            if stopping:
                say(f"stopping was asked for: step {done} is saved; the same command continues from here")
                break
            self._evaluate(state, done)  # 6
        clock.stop_loop()
        if trace:
            trace.close()
        return state

    def _report(self, step: int, metrics: Mapping, keys: list[str], progress: Throughput) -> None:
        """Fetches one step's metrics, guards against non-finite and bad data, logs if due."""
        values = {k: float(v) for k, v in jax.device_get(metrics).items()}
        if not self.start.done:
            say(self.start.finish())
            self._write_costs(step)
        self._guard(step, values, keys)
        doubt = getattr(self.built.objective, "doubt", None)
        said = doubt(values, self.built.batch_size) if doubt else ""
        if said and not self.doubted:  # of many such steps, the first
            self.doubted = True
            warn(f"step {step}: {said} (its examples: {', '.join(keys[:8])}, ...)")
        if step % self.log_every and step != self.built.total_steps and step != 1:
            return
        self.owner.check()
        row = {f"train/{k}": v for k, v in values.items()}
        row |= progress.measure(step, self.clock.seconds) | summary.device_memory()
        row["progress/examples_seen"] = step * self.built.batch_size
        self.log.scalars(step, row)
        say(progress.line(step, row))

    def _guard(self, step: int, values: Mapping[str, float], keys: list[str]) -> None:
        if values["skipped_in_row"]:
            warn(
                f"step {step}: loss {values['loss']} or gradient norm {values['grad_norm']} is not finite; update "
                f"skipped ({values['skipped']:.0f} so far); its examples: {', '.join(keys[:8])}, ..."
            )
        if values["skipped_in_row"] >= self.config.max_skipped_in_row:
            raise UserError(
                f"stopped: {values['skipped_in_row']:.0f} steps in a row had a non-finite loss or gradient, the last "
                f"is step {step} with examples {', '.join(keys[:8])}, ...; parameters are those of the last finite "
                "step; lower optim.lr, raise optim.warmup or set optim.clip_norm, in a new --workdir with "
                f"config.resume={self.workdir}"
            )
        bad = int(values["bad_records"])
        check_bad(step * self.built.batch_size, bad, self.config.data.max_bad, whole=self.data.length)

    def _evaluate(self, state: State, step: int) -> None:
        """Runs the evaluators due at `step` (after the last step: all) that have no result yet."""
        if step == 0:
            return
        with self.clock.phase("eval"):
            metrics = self.runner.run_due(average.of_state(state), step, final=step == self.built.total_steps)
        if metrics:
            self.log.scalars(step, metrics | {"progress/examples_seen": step * self.built.batch_size})
            self.saved.record(step, metrics, self.runner.better)

    def _meta(self, step: int) -> dict:
        return {
            "step": step,
            "examples_seen": step * self.built.batch_size,
            "batch_size": self.built.batch_size,
            "seed": self.config.seed,
            "total_steps": self.built.total_steps,
            "seconds": self.clock.seconds,
            "chip_seconds": self.clock.chip_seconds,
            "asked": self.asked.sums,
        }

    def _write_costs(self, step: int) -> None:
        costs = {
            "step": step, "examples_seen": step * self.built.batch_size, "seconds": self.clock.seconds,
            "chip_seconds": self.clock.chip_seconds, "start_seconds": self.start.seconds,
            "devices": self.built.mesh.size, "device_kind": jax.local_devices()[0].device_kind,
            "slices": sharding.slices(self.built.mesh), "processes": jax.process_count(),
            "batch_size": self.built.batch_size,
            "parameters": sum(x.size for x in jax.tree.leaves(self.built.abstract.params)),
            "flops_per_step": self.built.flops_per_step, "mfu_formula": flops.FORMULA,
            "command": " ".join(sys.orig_argv), "versions": versions(),
            "peak_flops_per_device": chips.peak_text(*self.peak),
            "storage": self.bill.so_far(self.asked.sums, step, self.clock, self.config.data.get("num_workers", 0)),
        }  # fmt: skip
        write_costs(self.workdir, costs, self.log.rows)
