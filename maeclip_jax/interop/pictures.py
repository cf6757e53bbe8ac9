"""What config.preprocess does to a picture, as other libraries' image processors say it, and back."""

from __future__ import annotations

import ast
import dataclasses
from collections.abc import Mapping
from typing import Any

from maeclip_jax.errors import UserError
from maeclip_jax.nn.pixels import STATS

# Our words for Pillow's filters -> their numbers in Pillow, which transformers writes.
RESAMPLE = {"nearest": 0, "lanczos": 1, "bilinear": 2, "bicubic": 3}


@dataclasses.dataclass(frozen=True)
class Recipe:
    """Resized by `method`: squashed to a square of `crop` pixels, or its shorter side to `side` and the middle `crop`
    cut out. Then normalised with `mean` and `std`.
    """

    squash: bool
    side: int
    crop: int
    method: str
    mean: tuple[float, ...]
    std: tuple[float, ...]


# The ops that image processors have, with the names of their arguments in order (data.image_ops).
_OPS = {"decode": (), "resize": ("size", "method", "antialias"), "resize_small": ("side", "method", "antialias"),
        "center_crop": ("size",)}  # fmt: skip


def recipe(config: Mapping) -> Recipe:
    """The recipe of a model's config (model, preprocess). UserError for what no image processor expresses."""
    model = config["model"]
    size = model["image_tower"]["size"]
    image = (config.get("preprocess") or {}).get("image") or f"decode|resize_small({size})|center_crop({size})"
    try:
        steps = _steps(image)
    except (SyntaxError, ValueError, LookupError):
        steps = []
    (first, resize), *rest = [s for s in steps if s[0] != "decode"] or [("", {})]
    squares, exact = (size, (size, size)), resize.get("antialias", "exact") == "exact"
    squash = first == "resize" and resize.get("size") in squares and not rest
    cut = first == "resize_small" and len(rest) == 1 and rest[0][0] == "center_crop"
    cut = cut and rest[0][1].get("size") in squares
    if not exact or not (squash or cut):
        raise UserError(
            f"config.preprocess.image={image!r} is nothing that image processors of other libraries do; valid: "
            f"'decode|resize({size})' or 'decode|resize_small(SIDE)|center_crop({size})', either with a method"
        )
    mean, std = STATS[model.get("stats", "imagenet")]
    side = size if squash else resize["side"]
    return Recipe(squash, side, size, resize.get("method", "bicubic"), tuple(mean), tuple(std))


def _steps(image: str) -> list[tuple[str, dict[str, Any]]]:
    """(name, arguments by name) of each op of a string that is made of _OPS; any other raises."""
    node, found = ast.parse(image.replace("\n", " "), mode="eval").body, []
    while isinstance(node, ast.BinOp) and isinstance(node.op, ast.BitOr):
        found.append(node.right)
        node = node.left
    out = []
    for one in (node, *found[::-1]):
        call = one if isinstance(one, ast.Call) else ast.Call(one, [], [])
        if not isinstance(call.func, ast.Name):
            raise ValueError(image)
        given = dict(zip(_OPS[call.func.id], map(ast.literal_eval, call.args), strict=False))
        given |= {str(k.arg): ast.literal_eval(k.value) for k in call.keywords}
        out.append((call.func.id, given))
    return out


def hf_processor(recipe: Recipe, *, siglip: bool = False) -> dict:
    """The preprocessor_config.json of transformers. `siglip`: of a SiglipProcessor, which squashes by default."""
    kind = "SiglipImageProcessor" if siglip and recipe.squash else "CLIPImageProcessor"
    square = dict(height=recipe.crop, width=recipe.crop)
    out = dict(
        image_processor_type=kind, do_resize=True, size=square if recipe.squash else dict(shortest_edge=recipe.side),
        resample=RESAMPLE[recipe.method], do_center_crop=not recipe.squash, do_rescale=True, rescale_factor=1 / 255,
        do_normalize=True, image_mean=list(recipe.mean), image_std=list(recipe.std), do_convert_rgb=True,
    )  # fmt: skip
    return out if recipe.squash else out | dict(crop_size=square)


def open_clip_processor(recipe: Recipe) -> dict:
    """The preprocess_cfg of an open_clip_config.json. UserError for what open_clip does not do."""
    if recipe.side != recipe.crop or recipe.method not in ("bicubic", "bilinear"):
        size = recipe.crop
        raise UserError(
            "open_clip resizes a picture to the size that it cuts out, by bicubic or bilinear; valid: "
            f"config.preprocess.image='decode|resize_small({size})|center_crop({size})' or 'decode|resize({size})'"
        )
    return dict(
        size=recipe.crop, mode="RGB", mean=list(recipe.mean), std=list(recipe.std), interpolation=recipe.method,
        resize_mode="squash" if recipe.squash else "shortest", fill_color=0,
    )  # fmt: skip
