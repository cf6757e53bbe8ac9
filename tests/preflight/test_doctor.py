"""The doctor says what is there, and refuses a silent fallback to the CPU."""

import pytest

from maeclip_jax.errors import UserError
from maeclip_jax.parallel import machine
from maeclip_jax.parallel.machine import refuse_fallback
from maeclip_jax.preflight import doctor
from maeclip_jax.preflight.doctor import report


def test_report_names_devices_versions_and_data():
    lines = "\n".join(report())
    for word in ("jax ", "flax", "devices", "data ", "cpu"):
        assert word in lines


def test_fallback_to_the_cpu_is_an_error_where_there_is_an_accelerator(monkeypatch):
    refuse_fallback()  # nothing here to fall back from
    for module in (doctor, machine):
        monkeypatch.setattr(module, "accelerator", lambda: "tpu")
    with pytest.raises(UserError, match=r"has a TPU, but jax sees only the CPU.*\[tpu\].*--platform=cpu"):
        refuse_fallback()
    assert any(line.startswith("PROBLEM") and "fell back" in line for line in report())
