"""The folder of a study whose results are made up: a planted gain over log10 N, as a trainer would have left it."""

import json
import math

import numpy as np

from maeclip_jax.study import design, plan, results, spending


def folder(to, monkeypatch, *, slope=-6.0, crossing=8000, seed=0, fail=(), **axes):
    """Writes study.json and runs/*.json to `to`."""
    monkeypatch.setattr(spending, "flops_of", lambda config: 1.5e9 if "decoder_tower" in config.model else 1e9)
    speed = spending.Speed({"clip": 0.3, "mae_clip": 0.45, "silc": 0.9}, 20.0, 0, "made up")
    monkeypatch.setattr(spending, "speed", lambda *_: speed)
    made = plan.make(design.Axes(**axes), "cpu", plan.ASSUMED_SD, 0.0)
    to.mkdir(parents=True)
    (to / plan.PLAN).write_text(json.dumps(made, indent=1))
    lots = np.random.default_rng(seed)
    easy = lots.uniform(-20, 20, 400)
    for run in plan.runs_of(made):
        if run.id in fail:
            results.write(to, run.id, {"id": run.id, "failed": "made to fail"})
            continue
        level = 12 * math.log10(run.size) + 8 * (run.diversity - 1) + 2 * (run.pool == "max") + lots.normal(0, 1.5)
        level += slope * math.log10(run.size / crossing) if run.arm == "mae_clip" else 0
        right = 100.0 * (lots.uniform(0, 100, 400) < level + easy)
        kept = {"items": "made up", "values": results.pack_values(right)}
        results.write(to, run.id, {
            "id": run.id, "settings": dict(run.settings), "config": run.config, "outcome": made["outcome"], "step": 1,
            "unit": "%", "better": "higher", "items": kept, "seconds": 60.0, "flops": run.flops, "examples": 1,
            "metrics": {
                made["outcome"]: float(right.mean()), "zero_shot_unseen/top1": level / 2,
                "grounding/gradcam_pointing": 20.0 + 30 * (run.pool == "max") + 0.1 * level,
            }, "device": "",
            "data": {"records": run.size, "unique pairs": run.size, "entropy of combinations (bits)": 3.9},
        })  # fmt: skip
    return to
