#!/bin/sh
# orbax CheckpointManager: a metric that is NaN can be the best step, for "max" and "min" alike; the best is deleted.
#
# Steps are sorted by their metric, and a comparison with NaN is false in Python, so the order around a NaN
# follows from the order of saving. best_step() then names a step whose evaluation was NaN, and max_to_keep removes
# better ones for it, on disk and without a word. A run that diverges, or an evaluation that divides by an empty class once, loses its
# best checkpoint. Whoever keeps checkpoints by a metric pays; best_fn should turn NaN into -inf (or inf for "min").
#
# orbax-checkpoint 0.12.8, jax 0.10.2, numpy 2.4.6, Python 3.11.7, 2026-11-29, seen (metrics of steps 0, 1, ...,
# max_to_keep=2):
#   [0.1, 0.5, 0.3, nan] max: best_step 3, kept [1, 3]; min: best_step 3, kept [0, 3]
#   [0.5, 0.4, nan, 0.3, 0.2] max: best_step 3, kept [3, 4]
#   [0.5, 0.4, -inf, 0.3, 0.2] max: best_step 0, kept [0, 1]
# Fails if NaN is never the best, or if the best finite step stays.
set -eu
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install -q --no-compile orbax-checkpoint==0.12.8 jax==0.10.2 jaxlib==0.10.2 numpy==2.4.6
cd "$folder"
JAX_PLATFORMS=cpu "$folder/venv/bin/python" - <<'PYTHON'
import tempfile
from pathlib import Path

import numpy as np
import orbax.checkpoint as ocp


def kept(metrics, mode):
    """The best step and the steps on disk, as a new manager of the same folder finds them."""
    options = ocp.CheckpointManagerOptions(
        best_fn=lambda m: m["accuracy"], best_mode=mode, max_to_keep=2, enable_async_checkpointing=False
    )
    folder = tempfile.mkdtemp(dir=".")
    with ocp.CheckpointManager(Path(folder).resolve(), options=options) as manager:
        for step, value in enumerate(metrics):
            manager.save(step, args=ocp.args.StandardSave({"x": np.ones(2)}), metrics={"accuracy": value})
        manager.wait_until_finished()
        return manager.best_step(), sorted(manager.all_steps())


def told(found):
    return f"best_step {found[0]}, kept {found[1]}"


nan, inf = float("nan"), float("inf")
last = [0.1, 0.5, 0.3, nan]
inner = [0.5, 0.4, nan, 0.3, 0.2]
infinite = [0.5, 0.4, -inf, 0.3, 0.2]
a, b, c, d = kept(last, "max"), kept(last, "min"), kept(inner, "max"), kept(infinite, "max")
print(f"#   {last} max: {told(a)}; min: {told(b)}")
print(f"#   {inner} max: {told(c)}")
print(f"#   {infinite} max: {told(d)}")
assert a == (3, [1, 3]) and b == (3, [0, 3])
assert c == (3, [3, 4]) and d == (0, [0, 1])
PYTHON
