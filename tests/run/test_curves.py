"""One curve: twelve steps of MAE-CLIP, with random masks, lose the same on any mesh and however they are computed."""

import numpy as np
import pytest

from tests import runs

ARG = "steps=12,save=12,evals=false,examples=false"
FSDP = {"mesh.replica": 1, "mesh.fsdp": 8}
# How -> (devices, settings). Two processes are in test_processes.py.
WAYS = {
    "1 device": (1, {}),
    "8 devices, fsdp, contrast in 2 parts": (8, FSDP | {"model.contrast_mib": 64 / 2**20}),
    "8 devices, fsdp and tensor": (8, {"mesh.replica": 1, "mesh.fsdp": 4, "mesh.tensor": 2}),
    "8 devices, replicas, fsdp and tensor, fused attention": (
        8, {"mesh.replica": 2, "mesh.fsdp": 2, "mesh.tensor": 2, "model.compute.attention": "fused_interpret"}
    ),
}  # fmt: skip


def curves(workdir) -> dict[str, list[float]]:
    """{metric: its twelve values}"""
    found = {name: runs.series(workdir, f"train/{name}") for name in ("loss", "contrast", "image", "text", "grad_norm")}
    assert all(list(values) == list(range(1, 13)) for values in found.values())
    return {name: [*values.values()] for name, values in found.items()}


@pytest.mark.parametrize("way", WAYS)
def test_twelve_steps_lose_what_they_lose_on_eight_replicas(way, tmp_path):
    devices, settings = WAYS[way]
    have, want = curves(runs.run(tmp_path / "run", ARG, devices, **settings)), curves(runs.whole(8, "steps=12,save=6"))
    for name, values in want.items():
        np.testing.assert_allclose(have[name], values, rtol=1e-4 if name == "grad_norm" else 2e-5, err_msg=name)
    assert want["loss"][-1] < 0.95 * want["loss"][0]  # it learns: the parameters of the last step are not the first's
