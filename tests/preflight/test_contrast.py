"""The contrast of a large batch, by the compiled program: what a device holds of the logits, and what is sent."""

import re

import jax
import pytest

from experiments import clip, mae, mae_clip, siglip
from maeclip_jax.errors import UserError
from maeclip_jax.preflight import hlo, programs
from maeclip_jax.run import step

BATCH, DEVICES, WIDTH = 1024, 8, 32
ROWS = BATCH // DEVICES
MESHES = {"copies": dict(replica=8, fsdp=1, tensor=1), "parameters shared": dict(replica=2, fsdp=4, tensor=1)}


def compiled(experiment, mesh="copies", **settings) -> str:
    """The text of a program of the contrast alone on eight CPU devices, its batch split over them."""
    config = experiment.get_config("runlocal")
    config.update_from_flattened_dict({"batch_size": BATCH, **{f"mesh.{k}": n for k, n in MESHES[mesh].items()}})
    config.update_from_flattened_dict(settings)
    built = step.build(config, epoch=None, devices=jax.devices()[:DEVICES])
    call, args = programs.contrast(built)
    with jax.set_mesh(built.mesh):
        return call.lower(*args).compile().as_text()


def sizes(text: str) -> set[tuple[int, ...]]:
    """Shapes of all arrays of two axes that are as long as a batch in one of them."""
    found = {tuple(map(int, dims.split(","))) for dims in re.findall(r"\b[a-z]+\d*\[([\d,]+)\]", text)}
    return {shape for shape in found if len(shape) == 2 and max(shape) >= ROWS and min(shape) > WIDTH}


@pytest.mark.parametrize(
    "experiment, mesh, settings",
    [
        (clip, "copies", {}), (clip, "parameters shared", {}), (siglip, "copies", {}),
        (mae_clip, "copies", {"model.duplicates": "positive"}),
    ],
    ids=["clip", "clip, parameters shared", "siglip", "mae_clip, equal captions share"],
)  # fmt: skip
def test_a_device_holds_its_rows_of_logits_and_the_texts_are_sent_once(experiment, mesh, settings):
    text = compiled(experiment, mesh, **settings)
    assert sizes(text) <= {(ROWS, BATCH), (BATCH, ROWS)} and sizes(text)
    sent = hlo.costs(text).collectives
    texts, numbers = 4 * BATCH * WIDTH, 4 * BATCH  # float32, and one of each row or caption
    assert not sent.get("all-to-all") and not sent.get("collective-permute")
    assert texts <= sent["all-gather"] <= texts + 6 * numbers  # 12 bytes a caption, and sums
    assert sent["reduce-scatter"] == texts and sent["all-reduce"] <= 12 * numbers  # their gradient, and sums


@pytest.mark.parametrize("experiment", [clip, siglip], ids=["softmax", "sigmoid"])
@pytest.mark.parametrize("mesh", MESHES)
@pytest.mark.parametrize("parts", [2, 8])
def test_in_parts_logits_are_smaller_and_no_more_is_sent(experiment, mesh, parts):
    """The texts once for both passes, as without parts, and their gradient once."""
    text = compiled(experiment, mesh, **{"model.contrast_mib": 4 * ROWS * BATCH / parts / 2**20})
    assert max(a * b for a, b in sizes(text)) == ROWS * BATCH // parts
    sent = hlo.costs(text).collectives
    texts, numbers = 4 * BATCH * WIDTH, 4 * BATCH
    assert not sent.get("all-to-all") and not sent.get("collective-permute")
    assert texts <= sent["all-gather"] <= texts + 6 * numbers
    assert sent["reduce-scatter"] == texts and sent["all-reduce"] <= 12 * numbers


def test_what_has_no_contrast_is_refused():
    config = mae.get_config("runlocal")
    with pytest.raises(UserError, match="--program=contrast: Masked has no contrast of its own; valid: train"):
        programs.contrast(step.build(config, epoch=None, devices=jax.devices()[:1]))
