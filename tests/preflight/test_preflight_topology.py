"""Slices by the names of people and of libtpu are the same slices; a wrong name is answered with right ones."""

import pytest

from maeclip_jax.errors import UserError
from maeclip_jax.parallel import chips
from maeclip_jax.preflight import topology

needs_libtpu = pytest.mark.skipif(not topology.installed(), reason=f"libtpu is not installed: {topology.INSTALL}")


@pytest.mark.parametrize(
    "name, libtpu, chips",
    [
        ("v4-8", "v4:2x2x1", 4),
        ("v4-128", "v4:4x4x4", 64),  # cores: two a chip
        ("v5p-256", "v5p:4x4x8", 128),
        ("v5litepod-8", "v5e:2x4", 8),
        ("v5litepod-256", "v5e:16x16", 256),  # chips
        ("v5e-32", "v5e:4x8", 32),
        ("v6e-256", "v6e:16x16", 256),
        ("V3-32", "v3:4x4", 16),
        ("v5p:4x4x12", "v5p:4x4x12", 192),
        ("v5p:16x16x24", "v5p:16x16x24", 6144),  # the largest of each
        ("v4-8192", "v4:16x16x16", 4096),
        ("v3-2048", "v3:32x32", 1024),
        ("v2-512", "v2:16x16", 256),
        ("tpu7x-128", "tpu7x:4x4x4", 64),
        ("ironwood:16x24x24", "tpu7x:16x24x24", 9216),
    ],
)
def test_names(name, libtpu, chips):
    found = topology.parse(name)
    assert (found.name, found.chips) == (libtpu, chips)
    assert topology.parse(libtpu) == found


def test_several_slices_and_cores_are_told():
    assert str(topology.parse("v5e-16", 2)) == "2 slices of v5e:4x4 (32 chips)"
    assert str(topology.parse("v4-128")) == "v4:4x4x4 (64 chips, 128 cores)"


@pytest.mark.parametrize(
    "name, count, text",
    [
        ("v5e-255", 1, "counts chips, a power of two from 1"),
        ("v5e-512", 1, "a v5e slice has up to 256 chips; for more, --num_slices of that size"),
        ("v5litepod-512", 2, "a v5e slice has up to 256 chips; for more, --num_slices"),
        ("v6e-300", 1, "a v6e slice has up to 256 chips; for more, --num_slices"),
        ("v5e:16x32", 1, "a v5e slice has up to 256 chips; for more, --num_slices"),
        ("v2-1024", 1, "a v2 slice has up to 256 chips, 512 cores; for more, --num_slices"),
        ("v3-4096", 1, "a v3 slice has up to 1024 chips, 2048 cores; for more, --num_slices"),
        ("v5p-16384", 1, "a v5p slice has up to 6144 chips, 12288 cores"),
        ("v6e:4x12", 1, "no such slice exists; valid: v6e:1x1, v6e:2x2, v6e:2x4,"),
        ("v5e-2", 1, "no such slice exists; valid: v5e:1x1, v5e:2x2, v5e:2x4,"),
        ("v5p-24", 1, "a power of two from 8; other grids as libtpu names them, such as v5p:4x4x12"),
        ("v4-9", 1, "counts cores (two a chip), a power of two from 8"),
        ("v4:4x4", 1, "a v4 slice has 3 axes"),
        ("v7-8", 1, "unknown TPU 'v7'"),
        ("tpu7x-32768", 1, "a tpu7x slice has up to 9216 chips, 18432 cores"),
        ("big", 1, "is not a slice; valid: v4-128, v5litepod-256"),
        ("v4-8", 0, "--num_slices=0: at least 1"),
    ],
)
def test_wrong_names(name, count, text):
    with pytest.raises(UserError) as e:
        topology.parse(name, count)
    assert text in str(e.value) and "\n" not in str(e.value)


@pytest.mark.parametrize("kind", chips.CHIPS)
def test_a_slice_has_the_peak_that_training_counts_with(kind):
    chip = chips.CHIPS[kind]
    assert topology.Slice(kind, (1, 1)).chip is chip
    assert {chips.peak(f"TPU {piece}") for piece in chip.kinds} == {chip.peak}


def test_the_peak_of_a_device_that_is_not_known_is_not_guessed():
    for kind, peak in (
        ("NVIDIA H100 80GB HBM3", 989e12), ("NVIDIA H100 PCIe", 756e12), ("NVIDIA H100 NVL", 835e12),
        ("NVIDIA A100-SXM4-40GB", 312e12), ("NVIDIA H200", 989e12),
    ):  # fmt: skip
        assert chips.peak(kind) == peak
    others = (
        "cpu",
        "NVIDIA RTX A1000",
        "NVIDIA GH200 480GB",
        "NVIDIA H200 NVL",
        "NVIDIA H100 80GB HBM3 MIG 1g.10gb",
        "",
    )
    assert [chips.peak(kind) for kind in others] == [None] * len(others)
    assert [chips.name(kind) for kind in ("TPU v5", "TPU v5 lite", "TPU7x", "TPU v50", "cpu")] == [
        "v5p",
        "v5e",
        "tpu7x",
        "",
        "",
    ]


def test_without_libtpu_the_message_says_how_to_get_it(monkeypatch):
    monkeypatch.setattr(topology, "installed", lambda: False)
    with pytest.raises(UserError, match=r"needs libtpu.*tpu-compile"):
        topology.parse("v5e-4").devices()


@pytest.mark.parametrize(
    "here, extra, pin, said",
    [
        ("0.0.52", "tpu", "0.0.42.*", "; a pod with jax[tpu] 0.10 has libtpu 0.0.42.*, which may differ"),
        ("0.0.52", "tpu", "0.0.5.*", "; a pod with jax[tpu] 0.10 has libtpu 0.0.5.*, which may differ"),
        ("0.0.42.1", "tpu", "0.0.42.*", ", as a pod with jax[tpu] 0.10 has"),
        ("0.0.52", "gpu", "0.0.42.*", "; which libtpu a pod with jax[tpu] 0.10 has is unknown"),
    ],
)
def test_the_compiler_here_is_compared_with_that_of_a_pod(monkeypatch, here, extra, pin, said):
    required = ["numpy>=2.0", f'libtpu=={pin}; extra == "{extra}"']
    monkeypatch.setattr("importlib.metadata.version", {"libtpu": here, "jax": "0.10"}.get)
    monkeypatch.setattr("importlib.metadata.requires", {"jax": required}.get)
    assert topology.compiler() == f"libtpu {here}, jax 0.10{said}"


@needs_libtpu
def test_jax_still_says_which_libtpu_its_extra_takes():
    """Read from the metadata of the jax that is installed, in a form that `topology.compiler` understands."""
    assert "unknown" not in topology.compiler()


@needs_libtpu
@pytest.mark.parametrize("kind", chips.CHIPS)
def test_devices_and_their_peak(kind):
    chip = chips.CHIPS[kind]
    one = topology.parse(f"{kind}:{'x'.join(('2', '2', '1')[: chip.axes])}")
    devices = one.devices()
    assert len(devices) == one.chips * chip.devices
    assert chips.peak(devices[0].device_kind) == chip.peak


@needs_libtpu
def test_devices_of_two_slices_come_in_the_order_of_processes():
    devices = topology.parse("v5e:4x4", 2).devices()
    assert [d.slice_index for d in devices] == [0] * 16 + [1] * 16
    processes = [d.process_index for d in devices]
    assert processes == sorted(processes)


@needs_libtpu
def test_a_grid_that_libtpu_has_not_is_one_line():
    with pytest.raises(UserError, match="libtpu has no topology v3:3x5"):
        topology.parse("v3:3x5").devices()
