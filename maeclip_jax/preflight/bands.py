"""How far estimates of step times are from measured ones: a band of ratios by chip, published or of one's own runs."""

from __future__ import annotations

import dataclasses
import json
import os
from collections.abc import Mapping

from maeclip_jax.errors import UserError
from maeclip_jax.errors.storage import writing


@dataclasses.dataclass(frozen=True)
class Band:
    """Measured step time over the estimate, with the network's waits in it: between `low` and `high`, by `source`."""

    low: float
    high: float
    source: str

    def __str__(self) -> str:
        return f"{self.low:.3g} to {self.high:.3g} times the estimate ({self.source})"


# Step times that others published of slices they ran, over what is estimated here of the same programs. None is of a
# program like ours: those of v5e and v6e are large language models, those of tpu7x single matrix products.
PUBLISHED = {
    "v5e": Band(0.83, 1.0, "published: 0.83 in MaxText 32B on v5e-256, maxtext configs/tpu/v5e/README.md; and 1"),
    "v6e": Band(1.2, 1.7, "published: GPT3-175B on v6e-256 and Llama3.1-8B on v6e-8, tpu-recipes training/trillium"),
    "tpu7x": Band(
        1.03, 1.22, "published: matmuls of 2,048 to 16,384, accelerator-microbenchmarks Ironwood_Microbenchmarks_readme"
    ),
}
ELSEWHERE = Band(0.83, 1.7, "nothing published of this chip: the widest of v5e, v6e and tpu7x")
FILE = "tpu/calibrations.jsonl"


def band(chip: str, calibrations: str = FILE) -> Band:
    """Of estimates for a chip: that of one's own calibrated runs, if there are any, or the published one."""
    own = [line for line in read(calibrations) if line["chip"] == chip]
    if own:
        ratios = [line["measured over estimated"] for line in own]
        runs = "; ".join(f"{line['run']} {line['date']}" for line in own[-3:])
        return Band(min(ratios), max(ratios), f"calibrated: {len(own)} runs in {calibrations}, the last {runs}")
    return PUBLISHED.get(chip, ELSEWHERE)


def read(path: str) -> list[dict]:
    """The lines of a file of calibrations, [] where the file is missing. UserError for a line that cannot be read."""
    if not os.path.exists(path):
        return []
    found = []
    with open(path) as f:
        for number, line in enumerate(filter(str.strip, f), 1):
            try:
                said = json.loads(line)
                ratio = float(said["measured over estimated"])
                assert ratio > 0 and isinstance(said["chip"], str) and said["run"] and said["date"]
            except (ValueError, KeyError, TypeError, AssertionError):
                raise UserError(
                    f"{path}, line {number} is not a calibration; valid: lines that preflight --calibrate=WORKDIR adds"
                ) from None
            found.append(said)
    return found


def keep(path: str, line: Mapping) -> None:
    """Adds a calibration; one of the same run is replaced."""
    kept = [old for old in read(path) if old["run"] != line["run"]] + [dict(line)]
    text = "".join(json.dumps(old) + "\n" for old in kept)
    os.makedirs(os.path.dirname(path) or ".", exist_ok=True)
    with writing(path, len(text)), open(path, "w") as f:
        f.write(text)
