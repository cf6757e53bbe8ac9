"""One curve: twelve steps of MAE-CLIP, with random masks, lose the same on any mesh and however they are computed."""

import numpy as np
import pytest

from tests import long, runs

ARG = "steps=12,save=12,evals=false,examples=false"
FSDP = {"mesh.replica": 1, "mesh.fsdp": 8}
# How -> (processes, devices of each, settings).
WAYS = {
    "1 device": (1, 1, {}),
    "8 devices, fsdp, contrast in 2 parts": (1, 8, FSDP | {"model.contrast_mib": 64 / 2**20}),
    "8 devices, fsdp and tensor": (1, 8, {"mesh.replica": 1, "mesh.fsdp": 4, "mesh.tensor": 2}),
    "8 devices, replicas, fsdp and tensor, fused attention": (
        1, 8, {"mesh.replica": 2, "mesh.fsdp": 2, "mesh.tensor": 2, "model.compute.attention": "fused_interpret"}
    ),
    "2 processes x 4 devices, fsdp": (2, 4, FSDP),
}  # fmt: skip

LONG = ("8 devices, fsdp and tensor", "2 processes x 4 devices, fsdp")  # other ways and tests hold their parts


def curves(workdir) -> dict[str, list[float]]:
    """{metric: its twelve values}"""
    found = {name: runs.series(workdir, f"train/{name}") for name in ("loss", "contrast", "image", "text", "grad_norm")}
    assert all(list(values) == list(range(1, 13)) for values in found.values())
    return {name: [*values.values()] for name, values in found.items()}


@pytest.mark.parametrize("way", long.marked(WAYS, LONG))
def test_twelve_steps_lose_what_they_lose_on_eight_replicas(way, tmp_path):
    processes, devices, settings = WAYS[way]
    workdir = tmp_path / "run"
    if processes == 1:
        runs.run(workdir, ARG, devices, **settings)
    else:
        flags = [f"--config.{name}={value}" for name, value in settings.items()]
        started = runs.together(workdir, ARG, *flags, processes=processes, devices=devices)
        assert runs.wait(started) == [0] * processes, runs.text(tmp_path / "run.0.txt")
    have, want = curves(workdir), curves(runs.whole(8, "steps=12,save=6"))
    for name, values in want.items():
        np.testing.assert_allclose(have[name], values, rtol=1e-4 if name == "grad_norm" else 2e-5, err_msg=name)
    assert want["loss"][-1] < 0.95 * want["loss"][0]  # it learns: the parameters of the last step are not the first's
