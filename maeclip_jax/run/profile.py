"""A profile of some steps, as xprof and TensorBoard open it: `--profile=START:STOP`."""

from __future__ import annotations

import re
import tempfile
from collections.abc import Callable
from typing import Any

from etils import epath

from maeclip_jax.errors import UserError
from maeclip_jax.parallel.terminal import say, warn

_KINDS = (".xplane.pb", ".trace.json.gz")  # of files; what stands before it is the name of a host to xprof
_FORM = re.compile(r"(\d{1,18}):(\d{1,18})")


def parse(text: str) -> tuple[int, int] | None:
    """(first, last) step to profile, counted from 1, of START:STOP; None where `text` is empty. UserError else."""
    if not text:
        return None
    found = _FORM.fullmatch(text)
    start, stop = map(int, found.groups()) if found else (0, 0)
    if not 1 <= start <= stop:
        raise UserError(
            f"--profile={text} does not name steps; valid: START:STOP with 1 <= START <= STOP, such as --profile=10:12"
        )
    return start, stop


class Profile:
    """Calls the step, and writes a trace of the steps from `span[0]` to `span[1]` into `<workdir>/profile`.

    Each process writes files of its own there, named by its number, into one session for all. The trace begins before
    the first of these steps that this run makes, and ends when the devices are done with the last, or with the run.
    A trace that cannot be taken or written is warned of; training goes on. `total`: steps of the run, UserError if the
    span lies behind them.
    """

    def __init__(self, workdir: epath.Path, span: tuple[int, int] | None, total: int):
        from maeclip_jax.workdir import PROFILE  # it imports jax, and a mistake in the command is said before that

        self._folder = workdir / PROFILE
        self._start, self._stop = span or (1, 0)
        self._files = ""  # where the trace that is being taken goes first: the workdir may be remote
        if span and self._start > total:
            raise UserError(f"--profile={span[0]}:{span[1]} begins after the last step, {total}")

    def __enter__(self) -> Profile:
        return self

    def __exit__(self, failure, *_) -> None:
        self._end(wait=failure is None)

    def __call__(self, n: int, step: Callable[..., Any], *args) -> Any:
        """`step(*args)`, which is step number `n`, counted from 1."""
        import jax

        if not self._start <= n <= self._stop:
            return step(*args)
        self._begin(n)
        with jax.profiler.StepTraceAnnotation("train", step_num=n):
            self._out = step(*args)
        self._last, out = n, self._out
        if n == self._stop:
            self._end()
        return out

    def _begin(self, n: int) -> None:
        import jax

        if self._files:
            return
        self._first = self._last = n
        self._files, self._out = tempfile.mkdtemp(), None
        try:
            options = jax.profiler.ProfileOptions()
            # Calls of Python drown the steps, and hooking them (jaxlib 0.10.2) ends a process, now and then, whose
            # threads of C++ call Python; those of tensorstore and gRPC do.
            options.python_tracer_level = 0
            jax.profiler.start_trace(self._files, profiler_options=options)
        except Exception as e:  # such as a trace that a notebook is taking
            self._give_up(e)

    def _end(self, wait: bool = True) -> None:
        import jax

        if not self._files:
            return
        if wait:
            jax.block_until_ready(self._out)  # dispatched is not done
        try:
            jax.profiler.stop_trace()
            self._write()
        except Exception as e:  # remote file systems raise what they like
            self._give_up(e)
        self._files, self._out = "", None

    def _write(self) -> None:
        import jax

        session = self._folder / "plugins" / "profile" / f"steps-{self._first}-{self._last}"
        session.mkdir(parents=True, exist_ok=True)
        for file in epath.Path(self._files).glob("plugins/profile/*/*"):
            # <host>.xplane.pb and <host>.trace.json.gz: several processes may share a host.
            kind = next((k for k in _KINDS if file.name.endswith(k)), f".{file.name}")
            (session / f"process-{jax.process_index()}{kind}").write_bytes(file.read_bytes())
        epath.Path(self._files).rmtree()
        say(f"profile of steps {self._first} to {self._last}: {session} (xprof {self._folder})")

    def _give_up(self, reason: Exception) -> None:
        said = " ".join(f"{type(reason).__name__}: {reason}".split())
        warn(f"no profile of steps {self._first} to {self._last}: {said}; training goes on")
        self._files, self._start, self._stop = "", 1, 0
