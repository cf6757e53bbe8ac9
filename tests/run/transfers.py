"""A guard for tests: the steps of the loop move nothing unasked.

Batches are placed, metrics are fetched together, and that is all. jax guards both directions, but on the CPU, where
values that come back lie in the same memory, only what goes to a device. So a value that is read here without
jax.device_get is an error of this file's own.
"""

import contextlib
import threading

import jax
import jax.numpy as jnp
import pytest

from maeclip_jax.run import saving, train

READS = ("__float__", "__int__", "__bool__", "__index__", "__array__", "item", "tolist")


class Fetched(Exception):
    """An array on the device was read without being asked for."""


@pytest.fixture
def guarded(monkeypatch):
    """Transfers that nobody asked for are errors while the loop makes steps.

    A checkpoint asks for what it saves, and an evaluation for its results.
    """
    strict = threading.local()

    @contextlib.contextmanager
    def reading(allowed: bool):
        before, strict.on = getattr(strict, "on", False), not allowed
        try:
            yield
        finally:
            strict.on = before

    def within(owner, name, *contexts):
        inner = getattr(owner, name)

        def outer(*args, **kwargs):
            with contextlib.ExitStack() as stack:
                for make, word in contexts:
                    stack.enter_context(make(word))
                return inner(*args, **kwargs)

        monkeypatch.setattr(owner, name, outer)

    def refuse(array, name):
        inner = getattr(array, name)

        def outer(self, *args, **kwargs):
            if getattr(strict, "on", False):
                raise Fetched(f"{name} of {self.aval}")
            return inner(self, *args, **kwargs)

        monkeypatch.setattr(array, name, outer)

    for name in READS:
        refuse(type(jnp.zeros(())), name)
    within(train._Run, "_steps", (jax.transfer_guard, "disallow"), (reading, False))
    within(jax, "device_get", (reading, True))
    within(saving.Checkpoints, "save", (reading, True))
    within(train._Run, "_evaluate", (jax.transfer_guard, "allow"), (reading, True))
