"""Joining a pod: its hosts gather, jax connects them, and one that fails takes the others along."""

from __future__ import annotations

from collections.abc import Callable, Mapping

from maeclip_jax.parallel import pod as pods
from maeclip_jax.parallel.pod import Pod
from maeclip_jax.parallel.rollcall import HEARTBEAT_SECONDS, Line, card, roll_call

_line: Line | None = None


def join_if_several(
    coordinator: str, processes: int, process: int, *, ask: bool, timeout: float, settings: Callable[[], Mapping]
) -> None:
    """Joins the pod that the flags or the environment name (see `pod.find`); a run of one process joins no pod.

    `settings()`: what all processes must agree on. UserError, the same on all hosts, as `join` says.
    """
    found = pods.find(coordinator, processes, process, ask=ask)
    if found:
        join(found, card(settings()), timeout)


def join(pod: Pod, card: dict, timeout: float) -> None:
    """Gathers the pod, then connects jax. UserError, the same on all hosts, for who is missing or runs something else.

    `timeout` is in seconds.
    """
    global _line
    _line = roll_call(pod, card, timeout)
    import jax

    jax.distributed.initialize(
        pod.address, pod.processes, pod.process,
        initialization_timeout=max(60, int(timeout)), heartbeat_timeout_seconds=HEARTBEAT_SECONDS,
    )  # fmt: skip
    import atexit

    atexit.register(_line.end, 0)  # runs before jax's own, which waits for the others


def failed(code: int, why: str) -> None:
    """Announces that this process ends with `code`, so that the others end with it too and print the reason."""
    if _line:
        _line.end(code, why)


def settle() -> None:
    """Leaves the line a moment to end the process for the loss of another: what broke here may come from that."""
    if _line:
        _line.settle()


def leave(code: int) -> None:
    """Ends a process of several with `code` at once, process 0 last; does nothing where there is only one."""
    if _line:
        _line.leave(code)
