"""Finished steps as throughput, expected end, and the line a person watches."""

from __future__ import annotations

from collections.abc import Mapping

from maeclip_jax.parallel.terminal import duration_text
from maeclip_jax.run.clock import Clock


class Throughput:
    """Turns finished steps into throughput, ETA and the line a person watches."""

    def __init__(
        self,
        start_step: int,
        total: int,
        batch_size: int,
        flops_per_step: float,
        peak: float | None,
        devices: int,
        chips: float,
        seconds: Mapping,
    ):
        """`peak` FLOP/s of a device, None if it is not known: then there is no MFU.

        `chips` are fewer than `devices` where a chip has two.
        """
        self.total, self.batch_size, self.devices, self.chips = total, batch_size, devices, chips
        self.flops_per_step, self.peak = flops_per_step, peak
        self._last = (start_step, seconds["train"], seconds["input_wait"])
        self._start = (start_step, self._wall(seconds))

    @staticmethod
    def _wall(seconds: Mapping) -> float:
        return seconds["train"] + sum(seconds[p] for p in Clock.PAUSES)

    def measure(self, step: int, seconds: Mapping[str, float]) -> dict[str, float]:
        """perf/* since the last call, from the clock's seconds: training time only, without pauses.

        `progress/eta_seconds` goes by the wall clock of this start, pauses included.
        """
        start_step, start_wall = self._start
        wall_a_step = (self._wall(seconds) - start_wall) / max(step - start_step, 1)
        last_step, last_trained, last_waited = self._last
        trained, waited = seconds["train"], seconds["input_wait"]
        elapsed, steps = max(trained - last_trained, 1e-9), max(step - last_step, 1)
        self._last = (step, trained, waited)
        per_step = elapsed / steps
        used = {"perf/mfu": self.flops_per_step / per_step / self.devices / self.peak} if self.peak else {}
        return {
            "perf/step_seconds": per_step,
            "perf/img_per_sec": self.batch_size / per_step,
            "perf/img_per_sec_per_chip": self.batch_size / per_step / self.chips,
            **used,
            "perf/input_wait_fraction": min(1.0, (waited - last_waited) / elapsed),
            "progress/eta_seconds": (self.total - step) * wall_a_step,
        }

    def line(self, step: int, row: Mapping[str, float]) -> str:
        """`step 120/600 20% | eta 3m10s | loss 2.345 | 410 img/s | mfu 21% | input wait 1%`."""
        parts = [
            f"step {step}/{self.total} {100 * step / self.total:3.0f}%",
            f"eta {duration_text(row['progress/eta_seconds'])}",
            f"loss {row['train/loss']:.4f}",
            f"{row['perf/img_per_sec']:.0f} img/s",
            *([f"mfu {100 * row['perf/mfu']:.0f}%"] if "perf/mfu" in row else []),
            f"input wait {100 * row['perf/input_wait_fraction']:.0f}%",
        ]
        if row.get("train/skipped"):
            parts.append(f"skipped {row['train/skipped']:.0f} steps")
        if row.get("train/bad_records"):
            parts.append(f"bad records {row['train/bad_records']:.0f}")
        return " | ".join(parts)
