"""What the machine is told before jax starts."""

import gc
import os
import subprocess
import sys

import jax
import pytest

from maeclip_jax.parallel import machine


def test_fake_devices_get_threads_to_wait_in(monkeypatch):
    """With a pool as wide as the devices, collectives waiting for one another can fill it for ever."""
    told = {}
    monkeypatch.setattr(jax.config, "update", told.__setitem__)
    monkeypatch.delenv("NPROC", raising=False)
    monkeypatch.setenv("XLA_FLAGS", "")
    machine.configure_jax(platform="cpu")
    assert "NPROC" not in os.environ and not os.environ["XLA_FLAGS"] and "jax_num_cpu_devices" not in told
    machine.configure_jax(cpu_devices=64)
    assert told["jax_num_cpu_devices"] == 64 and int(os.environ["NPROC"]) >= 64 * machine.THREADS_PER_CPU_DEVICE
    monkeypatch.setenv("NPROC", "5")  # the user's own word counts
    machine.configure_jax(cpu_devices=64)
    assert os.environ["NPROC"] == "5"


@pytest.mark.parametrize(
    "before, after",
    [
        ("", machine.IN_ONE_ORDER),
        ("--xla_dump_to=x", f"--xla_dump_to=x {machine.IN_ONE_ORDER}"),
        ("--xla_cpu_enable_concurrency_optimized_scheduler=true", None),  # the user's own word counts
        (machine.IN_ONE_ORDER, None),  # a child of a process that has set it
    ],
)
def test_fake_devices_begin_their_collectives_in_one_order(monkeypatch, before, after):
    monkeypatch.setattr(jax.config, "update", lambda *_: None)
    monkeypatch.setenv("NPROC", "5")
    monkeypatch.setenv("XLA_FLAGS", before)
    machine.configure_jax(cpu_devices=2)
    assert os.environ["XLA_FLAGS"] == (before if after is None else after)


@pytest.mark.parametrize("before, after", [(700, 5_000), (2_000, 5_000), (5_000, 5_000), (20_000, 20_000), (0, 0)])
def test_garbage_in_cycles_is_looked_for_rarely_unless_told_otherwise(monkeypatch, before, after):
    monkeypatch.setattr(jax.config, "update", lambda *_: None)
    was = gc.get_threshold()
    try:
        gc.set_threshold(before, *was[1:])
        machine.configure_jax(platform="cpu")
        assert gc.get_threshold() == (after, *was[1:])
    finally:
        gc.set_threshold(*was)


def test_no_tpu_is_looked_for_where_there_is_none(monkeypatch):
    """libtpu may be installed for pre-flights; jax asking it for chips writes lines of errors."""
    told = {}
    monkeypatch.setattr(jax.config, "update", told.__setitem__)
    monkeypatch.setattr(machine.importlib.util, "find_spec", lambda name: name)
    monkeypatch.setattr(machine.importlib.metadata, "entry_points", lambda group: ())
    monkeypatch.setattr(machine, "accelerator", lambda: None)
    monkeypatch.setattr(machine, "has_google_chip", lambda: False)
    monkeypatch.delenv("JAX_PLATFORMS", raising=False)
    monkeypatch.setattr(type(jax.config), "jax_platforms", None, raising=False)
    assert machine.look_for_no_tpu() and told == {"jax_platforms": "cpu"}
    for name, value in (("accelerator", "tpu"), ("accelerator", "gpu"), ("has_google_chip", True)):
        told.clear()
        with monkeypatch.context() as patch:
            patch.setattr(machine, name, lambda found=value: found)
            assert not machine.look_for_no_tpu() and not told
    monkeypatch.setattr(machine.importlib.util, "find_spec", lambda name: None)
    assert not machine.look_for_no_tpu() and not told
    monkeypatch.setenv("JAX_PLATFORMS", "tpu")
    assert not machine.look_for_no_tpu() and not told


def test_a_command_on_a_machine_without_a_tpu_says_nothing_of_tpus():
    pytest.importorskip("libtpu", reason="libtpu is not installed")
    if machine.accelerator():
        pytest.skip("this machine has an accelerator")
    environment = {k: v for k, v in os.environ.items() if k not in ("JAX_PLATFORMS", "XLA_FLAGS")}
    command = [sys.executable, "-m", "maeclip_jax.preflight.doctor"]
    done = subprocess.run(command, capture_output=True, text=True, env=environment, timeout=600)
    assert done.returncode == 0 and done.stderr == ""


def test_only_half_an_entry_of_the_compilation_cache_is_removed(tmp_path, monkeypatch):
    """An entry that is whole may be unusable for this program alone: preflight cannot load what a slice compiled."""
    monkeypatch.setattr(machine, "_told", set())
    before = jax.config.jax_compilation_cache_dir
    jax.config.update("jax_compilation_cache_dir", str(tmp_path))
    try:
        mine, other = tmp_path / "jit_update-1a-cache", tmp_path / "jit_fresh-1a-cache"
        start = "Error reading persistent compilation cache entry for 'jit_update': "
        for warning, left, said in (
            (f"{start}JaxRuntimeError: INVALID_ARGUMENT: no client", {mine, other}, None),
            ("something else", {mine, other}, None),
            (
                f"{start}error: Error -5 while decompressing data: truncated",
                {other},
                "compiled programs cannot be read",
            ),
            (f"{start}error: Error -5 while decompressing data: truncated", {other}, ""),
            (
                "Error writing persistent compilation cache entry for 'jit_update': OSError: x",
                {other},
                "compiled programs",
            ),
        ):
            mine.write_bytes(b"x")
            other.write_bytes(b"x")
            found = machine.mend_cache(warning)
            assert set(tmp_path.iterdir()) == left, warning
            assert found == said if not said else found.startswith(said), warning
    finally:
        jax.config.update("jax_compilation_cache_dir", before)
