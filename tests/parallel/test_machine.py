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
