"""What the machine is told before jax starts."""

import os

import jax

from maeclip_jax.parallel import machine


def test_fake_devices_get_threads_to_wait_in(monkeypatch):
    """With a pool as wide as the devices, collectives waiting for one another can fill it for ever."""
    told = {}
    monkeypatch.setattr(jax.config, "update", told.__setitem__)
    monkeypatch.delenv("NPROC", raising=False)
    machine.configure_jax(platform="cpu")
    assert "NPROC" not in os.environ and "jax_num_cpu_devices" not in told
    machine.configure_jax(cpu_devices=64)
    assert told["jax_num_cpu_devices"] == 64 and int(os.environ["NPROC"]) >= 64 * machine.THREADS_PER_CPU_DEVICE
    monkeypatch.setenv("NPROC", "5")  # the user's own word counts
    machine.configure_jax(cpu_devices=64)
    assert os.environ["NPROC"] == "5"
