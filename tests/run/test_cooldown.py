"""A cool-down that branches off a stable phase is that of a run which was never interrupted."""

import shutil

import numpy as np

from maeclip_jax.workdir import read_metrics
from tests import runs, torture

ARG = "objective=clip,steps=4,save=2,evals=false,examples=false"
STABLE = {"optim.schedule": "constant", "optim.warmup": "1 steps", "optim.ema": 0.9}


def test_a_branch_of_a_longer_stable_phase_ends_with_the_same_bits(tmp_path, capsys):
    cooled = STABLE | {"optim.cooldown": "2 steps"}
    whole = runs.run(tmp_path / "whole", ARG, 1, **cooled)
    stable = runs.run(tmp_path / "stable", ARG, 1, **STABLE)
    branch = runs.run(tmp_path / "branch", ARG, 1, resume=str(stable / "checkpoints" / "2"), **cooled)
    assert "continuing from step 2 of 4" in capsys.readouterr().out
    one, other = torture.arrays(branch), torture.arrays(whole)
    assert one.keys() == other.keys()
    for path, x in one.items():
        np.testing.assert_array_equal(x, other[path], err_msg=path)
    rates = {row["step"]: row["train/learning_rate"] for row in read_metrics(branch)}
    np.testing.assert_allclose([rates[3], rates[4]], [2e-3, 1e-3])
    # The stable phase itself goes on, and is longer than was planned.
    kept = runs.series(stable)
    shutil.rmtree(stable / "checkpoints" / "4")
    runs.run(stable, ARG, 1, **STABLE | {"total": "5 steps"})
    longer = runs.series(stable)
    assert max(longer) == 5 and {n: longer[n] for n in kept} == kept
