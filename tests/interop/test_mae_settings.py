"""What an MAE's file says beside its shapes: the settings of its run, and positions that half precision rounded."""

from pathlib import Path

import numpy as np
import pytest

from maeclip_jax.interop import convert, mae
from tests.interop.test_mae_family import mae_config, of, official


def test_what_the_run_says_of_an_mae():
    """facebookresearch/mae keeps its arguments in the .pth: targets, the share that is masked, and the model's name."""
    config = mae_config()
    weights = official(config, of(config))
    heads = dict(image=1, decoder=1)

    def told(**args):
        settings = {f"args.{k}": v for k, v in args.items()}
        return mae.describe(weights, Path(), convert.Given(heads, settings))["model"]

    silent = convert.Given(heads, {"args.mask_ratio": 0.6})
    (note,) = mae.describe(weights, Path(), silent)["notes"]
    assert note == "the file does not say norm_pix_loss: taken to be as in the paper's best models"
    both = convert.Given(heads, {"args.mask_ratio": 0.6, "args.norm_pix_loss": True})
    assert not mae.describe(weights, Path(), both)["notes"]
    made = told(norm_pix_loss=False, mask_ratio=0.6)
    assert (made["norm_pix"], made["mask"]) == (False, dict(image=0.6))
    assert (told()["norm_pix"], told()["mask"]) == (True, dict(image=0.75))
    encoder = {k: v for k, v in weights.items() if not k.startswith("decoder")}
    wide = {k: np.zeros((768, 3072)) if k.endswith("fc2.weight") else v for k, v in encoder.items()}
    for name, known in (("mae_vit_base_patch16", True), ("mae_vit_small_patch16", False)):
        given = convert.Given(settings={"args.model": name})
        if known:
            assert mae.describe(wide, Path(), given)["model"]["image_tower"]["heads"] == 12
        else:
            mae.describe(wide, Path(), given)
            assert given.unknown["image"][0] == "nothing says how many heads the image tower has, which is 768 wide"


@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
@pytest.mark.parametrize("widened", [False, True])
def test_positions_rounded_to_half_are_mae_s(tmp_path, dtype, widened):
    """Ours computes them exactly; positions that are off by more than rounding are still another model's."""
    import ml_dtypes

    config, half = mae_config(), np.float16 if dtype == "float16" else ml_dtypes.bfloat16
    image, eps = config.model.image_tower, float(ml_dtypes.finfo(half).eps)
    for width in (image.width, config.model.decoder_tower.width):
        exact = mae.fixed(image, width)
        rounded = exact.astype(half)
        assert np.abs(rounded.astype(np.float32) - exact).max() > 1e-4
        rounded = rounded.astype(np.float32) if widened else rounded
        assert mae._is_fixed(rounded, image, width)
        assert not mae._is_fixed((exact + 4 * eps).astype(half), image, width)
        assert not mae._is_fixed((exact + eps / 2).astype(np.float32), image, width)
    weights = official(config, of(config))
    told = {k: v.astype(half) for k, v in weights.items()}
    made = mae.describe(told, Path(), convert.Given(dict(image=1, decoder=1)))["model"]["image_tower"]
    assert made["position"] == "sincos"
