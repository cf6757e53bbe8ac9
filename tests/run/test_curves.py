"""One curve: twenty steps of MAE-CLIP lose the same however they are computed and wherever."""

import functools

import numpy as np
import pytest

from tests import runs

ARG = "steps=20,save=20,evals=false,examples=false"
FSDP = {"mesh.replica": 1, "mesh.fsdp": 8}
# How -> (processes, devices of each, settings).
WAYS = {
    "8 devices, fsdp, contrast in 2 parts": (1, 8, FSDP | {"model.contrast_mib": 64 / 2**20}),
    "8 devices, fsdp and tensor, fused attention": (
        1, 8, {"mesh.replica": 2, "mesh.fsdp": 2, "mesh.tensor": 2, "model.compute.attention": "fused_interpret"}
    ),
    "2 processes x 4 devices, fsdp": (2, 4, FSDP),
}  # fmt: skip


@functools.cache
def one_device() -> dict[str, list[float]]:
    return curves(runs.run(runs.folder() / "curve-1", ARG, 1))


def curves(workdir) -> dict[str, list[float]]:
    """{metric: its twenty values}"""
    found = {name: runs.series(workdir, f"train/{name}") for name in ("loss", "contrast", "image", "text", "grad_norm")}
    assert all(list(values) == list(range(1, 21)) for values in found.values())
    return {name: [*values.values()] for name, values in found.items()}


@pytest.mark.parametrize("way", WAYS)
def test_twenty_steps_lose_what_they_lose_on_one_device(way, tmp_path):
    processes, devices, settings = WAYS[way]
    workdir = tmp_path / "run"
    if processes == 1:
        runs.run(workdir, ARG, devices, **settings)
    else:
        flags = [f"--config.{name}={value}" for name, value in settings.items()]
        started = runs.together(workdir, ARG, *flags, processes=processes, devices=devices)
        assert runs.wait(started) == [0] * processes, runs.text(tmp_path / "run.0.txt")
    have, want = curves(workdir), one_device()
    for name, values in want.items():
        np.testing.assert_allclose(have[name], values, rtol=1e-4 if name == "grad_norm" else 2e-5, err_msg=name)
    assert want["loss"][-1] < 0.95 * want["loss"][0]  # it learns: the parameters of the last step are not the first's
