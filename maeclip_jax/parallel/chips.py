"""What is known of chips: one table of TPUs, their prices, the peak FLOP/s of GPUs, and that of the devices at hand."""

from __future__ import annotations

import dataclasses
import functools
import re
import statistics
import time

from maeclip_jax.parallel import machine


@dataclasses.dataclass(frozen=True)
class Chip:
    """A TPU. `peak` bf16 FLOP/s of a jax device (data sheets); `kinds`: words of jax's device_kind by which it is
    known.

    `clock` Hz of the cycles the compiler estimates with; `hbm` GiB of a jax device that it lets a program use, and
    `bandwidth` bytes/s to it; `ici` bytes/s out of a device over all its links, half of what the data sheets give for
    both ways (None: none published); `axes` of its torus; `most` chips of a slice; `devices` of jax in a chip (of v2,
    v3 and tpu7x, a device is a core). `attention`, `mlp`: what `model.compute.attention=fused` and `...mlp=auto` are on
    it, of the words of nn.transformer.

    Clocks: one bf16 matmul of 8192^3 is estimated at 70 % (v6e) to 100 % (v2) of the data sheet's peak with them; that
    of tpu7x is inferred from such matmuls, as none is published.
    Largest slices: the types, shapes and pods of docs.cloud.google.com/tpu/docs/v2, .../v3 and so on to .../tpu7x.
    """

    peak: float
    kinds: tuple[str, ...]
    clock: float
    hbm: float
    bandwidth: float
    ici: float | None
    axes: int
    most: int
    devices: int = 1
    cores_in_name: bool = False  # v4-128: 128 cores, two a chip
    config: str = ""  # libtpu's chip configuration
    attention: str = "fused_core"  # fused_layer where the compiler estimates it to be faster (LOG.md)
    mlp: str = "xla"  # fused where the compiler estimates it to be faster (LOG.md)


# In this order a device is looked for: "v5 lite" must be found before "v5".
# A v4 or v5p chip is one device of two cores, and a kernel that sums its weights' gradients from step to step is one
# core's: on v5p the two kernels would make a step of CLIP B/16 1.6 times longer.
CHIPS = {
    "v2": Chip(22.5e12, ("v2",), 0.70e9, 7.48, 350e9, None, 2, 256, devices=2, cores_in_name=True),
    "v3": Chip(61.5e12, ("v3",), 0.94e9, 15.48, 450e9, None, 2, 1024, devices=2, cores_in_name=True),
    "v4": Chip(275e12, ("v4",), 1.05e9, 30.75, 1228e9, 300e9, 3, 4096, cores_in_name=True, config="megacore"),
    "v5e": Chip(197e12, ("v5 lite", "v5e"), 1.50e9, 15.75, 819e9, 200e9, 2, 256, attention="fused_layer"),
    "v5p": Chip(459e12, ("v5p", "v5"), 1.75e9, 95.73, 2765e9, 600e9, 3, 6144, cores_in_name=True),
    "v6e": Chip(918e12, ("v6 lite", "v6e"), 1.75e9, 31.24, 1640e9, 400e9, 2, 256, attention="fused_layer", mlp="fused"),
    # Of a chip: 2,307e12 FLOP/s in bf16, 192 GiB, 7,380e9 bytes/s, 600e9 bytes/s out.
    "tpu7x": Chip(
        1153.5e12, ("tpu7x", "7x"), 2.20e9, 94.74, 3690e9, 300e9, 3, 9216, devices=2, cores_in_name=True,
        attention="fused_layer", mlp="fused",
    ),
}  # fmt: skip
# Dollars of a chip-hour on demand, in the cheapest region of the USA: Google's list prices as SkyPilot's catalogue has
# them (github.com/skypilot-org/skypilot-catalog, catalogs/v8/gcp/vms.csv at 006059e, read on 2026-11-29). It has none
# of tpu7x.
PRICES = {"v2": 1.50, "v3": 2.00, "v4": 3.22, "v5e": 1.20, "v5p": 4.20, "v6e": 2.70}
PRICED = "on demand in the USA, list price read 2026-11-29 in SkyPilot's catalogue"
# Bytes/s a chip of the data centre network, over which hosts read storage and slices talk: that of a pod, over its 256
# chips, of v5e and v6e; of a chip, v5p (docs.cloud.google.com/tpu/docs/v5e, .../v5p and .../v6e, 2026-11-29).
NETWORK = {"v5e": 6.4e12 / 8 / 256, "v5p": 50e9 / 8, "v6e": 25.6e12 / 8 / 256}
# How a CPU's peak is measured: sides of square matrices, FLOPs of a core's share of a round, fewest rounds of a size.
SIZES, ROUND, ROUNDS = (512, 1024), 4e9, 3
# bf16 peak FLOP/s of a GPU, dense, by words of jax's device_kind: NVIDIA's data sheets, which give twice as much, with
# sparsity, of Hopper; None: not looked up. The cards named first are slower than the modules of that name.
GPUS = {
    "A100": 312e12, "H100 PCIe": 756e12, "H100 NVL": 835e12, "H100": 989e12, "H200 NVL": None, "H200": 989e12,
}  # fmt: skip


def _has(device_kind: str, words: str) -> bool:
    """Whether `words` stand in a device_kind, whole: those of an A100 do not stand in that of an RTX A1000."""
    kind, asked = (" ".join(re.findall(r"[a-z0-9]+", text.lower())) for text in (device_kind, words))
    return f" {asked} " in f" {kind} "


def peak(device_kind: str) -> float | None:
    """bf16 peak FLOP/s of one jax device, from its data sheet; None if it is not known, as of a part of a GPU (MIG)."""
    known = [(words, chip.peak) for chip in CHIPS.values() for words in chip.kinds] + list(GPUS.items())
    if _has(device_kind, "MIG"):
        return None
    return next((found for words, found in known if _has(device_kind, words)), None)


def name(device_kind: str) -> str:
    """The name in CHIPS of a jax device, by its kind; empty for what is not a TPU that is known."""
    known = [(words, name) for name, chip in CHIPS.items() for words in chip.kinds]
    tpu = "tpu" in device_kind.lower()
    return next((name for words, name in known if tpu and _has(device_kind, words)), "")


def of(device_kind: str) -> Chip | None:
    """The chip of a jax device, by its kind; None for what is not a TPU that is known."""
    return CHIPS.get(name(device_kind))


def count(devices: int, device_kind: str) -> float:
    """Chips that so many jax devices are: half as many where each core of a chip is a device (v2, v3, tpu7x)."""
    chip = of(device_kind)
    return devices / chip.devices if chip else devices


def memory(device) -> float | None:
    """Bytes that a program may use of a jax device, at hand or of a slice that is only compiled for; None: not known
    (a CPU)."""
    chip = of(device.device_kind)
    if chip or device.platform == "cpu":
        return chip and chip.hbm * 2**30
    return (device.memory_stats() or {}).get("bytes_limit")


def peak_per_device(dtype: str, seconds: float = 0.0) -> tuple[float | None, str]:
    """(peak FLOP/s of one device, where the number is from): the data sheet's, or measured on a CPU, which has none.

    `seconds`: how long each of SIZES is measured; 0: ROUNDS rounds, with which a run starts at once. None for other
    devices that are not known: time of processors says nothing of them.
    """
    import jax
    import jax.numpy as jnp

    device = jax.local_devices()[0]
    kind = device.device_kind
    found = peak(kind)
    if found:
        return found, f"{kind} data sheet, bf16"
    if device.platform != "cpu":
        return None, f"no data sheet of {kind} is known here, so the MFU is not known"
    rate, low, cores = _measured(jnp.dtype(dtype), seconds)
    return rate / len(jax.local_devices()), (
        f"{kind}: measured here, best of {dtype} matmuls of {' and '.join(map(str, SIZES))} a side, "
        f"by processor time of {cores} cores; half of the rounds reached {low / rate:.0%} of it"
    )


def peak_text(found: float | None, source: str) -> str:
    """What `peak_per_device` gives as a run keeps it: `1.970e+14, TPU v5 lite data sheet, bf16`."""
    return f"{'unknown' if found is None else f'{found:.3e}'}, {source}"


@functools.cache
def _measured(dtype, seconds: float) -> tuple[float, float, int]:
    """(FLOP/s of the CPU's fastest round, of the median round of its size, cores).

    Every core multiplies at the same time, and a round's FLOPs are divided by the processor time that it took, so that
    other programs on the machine hardly count.
    """
    import concurrent.futures

    import jax
    import jax.numpy as jnp

    cores = machine.core_count()
    matmul = jax.jit(lambda a: a @ a)
    best, median = 0.0, 0.0
    with concurrent.futures.ThreadPoolExecutor(cores) as threads:
        for n in SIZES:
            x = jax.device_put(jnp.ones((n, n), dtype), jax.local_devices()[0])
            products = max(1, round(ROUND / 2 / n**3))

            def multiply(_, x=x, products=products):
                for _ in range(products):
                    matmul(x).block_until_ready()

            list(threads.map(multiply, range(cores)))  # the first are slow: threads start and pages are mapped
            rates, begun = [], time.perf_counter()
            while len(rates) < ROUNDS or time.perf_counter() - begun < seconds:
                start = time.process_time()
                list(threads.map(multiply, range(cores)))
                took = time.process_time() - start
                rates.append(cores * 2.0 * n**3 * products * cores / took)
            if max(rates) > best:
                best, median = max(rates), statistics.median(rates)
    return best, median, cores
