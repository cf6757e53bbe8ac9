"""How pictures reach a model, by the file that its own library reads for it: as ops and as pixel statistics."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from maeclip_jax.errors import UserError
from maeclip_jax.interop import hf

METHODS = {0: "nearest", 1: "lanczos", 2: "bilinear", 3: "bicubic"}  # Pillow's numbers, which transformers writes
HF_FILES = ("processor_config.json", "preprocessor_config.json")  # since version 5 of transformers; before it
# Ops of the pictures of an evaluation that make a size, and what data.ops calls it.
SIZED = {"resize": "size", "resize_small": "side", "center_crop": "size", "corner_crop": "size", "fit": "size"}


def hugging_face(folder: Path, side: int, patch: int, *, stats: str, squash: bool) -> dict:
    """dict(ops, stats) of the picture processor that `transformers` saved in `folder`.

    `side`: the model's pictures in pixels, by its config; what its patches do not cover is cut off as its convolution
    does. `stats` and `squash` (one size whatever the proportions, or the middle): where no file says it. UserError for
    what our ops do not do, and for pictures that the model does not take.
    """
    found, name = {}, ""
    for name in HF_FILES:
        found = hf.read_json(folder, name, needed=False)
        found = (found.get("image_processor") or {}) if name == HF_FILES[0] else found
        if found:
            break
    what = str(folder / name)
    names = stats_of(found, stats, ("image_mean", "image_std"), folder)
    if not found or not any(key in found for key in ("size", "do_resize", "do_center_crop", "crop_size")):
        return dict(ops=ops(side, patch, squash=squash), stats=names)
    for key, value in (("do_normalize", True), ("do_rescale", True), ("do_resize", True), ("do_pad", False)):
        if found.get(key) not in (value, None):
            raise UserError(f"{what}: {key} is {found[key]!r}; valid here: {value!r}")
    if abs(float(found.get("rescale_factor") or 1 / 255) * 255 - 1) > 1e-4:
        raise UserError(f"{what}: rescale_factor is {found['rescale_factor']!r}; valid here: 1/255")
    kind = str(found.get("image_processor_type") or found.get("feature_extractor_type") or "")
    clips = kind.startswith("CLIP") or (not kind and not squash)
    size = found.get("size") or side
    if isinstance(size, int):  # before version 4.25 of transformers
        size = dict(shortest_edge=size) if clips else dict(height=size, width=size)
    crop = found.get("crop_size") or side
    crop = dict(height=crop, width=crop) if isinstance(crop, int) else crop
    number = found.get("resample", 3 if clips or kind.startswith("Siglip") or not kind else 2)
    if number not in METHODS:
        valid = ", ".join(f"{k} ({v})" for k, v in METHODS.items())
        raise UserError(f"{what}: resample is {number!r}; valid here: {valid}")
    cropped = found.get("do_center_crop", clips)
    small = size.get("shortest_edge")
    if small is None and size.get("height") != size.get("width"):
        raise UserError(f"{what}: size is {size}; valid here: a square, or the shortest_edge")
    made = crop.get("height") if cropped else size.get("height")
    if made != side or (cropped and crop.get("width") != side):
        raise UserError(f"{what} makes pictures of {made or size}, the model takes {side}")
    resized = small or size["height"]
    if resized < side:
        raise UserError(f"{what} resizes to {resized} and cuts out {side}; valid here: a crop of at most that size")
    return dict(
        ops=ops(side, patch, squash=small is None, resized=resized, method=METHODS[number], crop=cropped), stats=names
    )


def open_clip(found: Mapping, side: int, patch: int, folder: Path, stats: str) -> dict:
    """dict(ops, stats) of an open_clip_config.json's preprocess_cfg, with open_clip's defaults."""
    mode, method = found.get("resize_mode") or "shortest", found.get("interpolation") or "bicubic"
    what = str(folder / "open_clip_config.json")
    if mode not in ("shortest", "squash"):
        raise UserError(f"{what}: resize_mode is {mode!r}; valid here: 'shortest', 'squash'")
    method = "bicubic" if method == "random" else method  # drawn in training alone
    if method not in ("bicubic", "bilinear"):
        raise UserError(f"{what}: interpolation is {method!r}; valid here: 'bicubic', 'bilinear'")
    size = found.get("size") or side
    size = size[0] if isinstance(size, list) and len(set(size)) == 1 else size
    if size != side:
        raise UserError(f"{what} makes pictures of {size}, the model takes {side}")
    names = stats_of(found, stats, ("mean", "std"), folder)
    return dict(ops=ops(side, patch, squash=mode == "squash", method=method), stats=names)


def ops(side: int, patch: int, *, squash: bool, resized: int = 0, method: str = "bicubic", crop: bool = True) -> str:
    """Ops that make pictures of the multiple of `patch` up to `side`. `resized`: the size before the middle is cut."""
    resized = resized or side
    more = f',method="{method}"' if method != "bicubic" else ""
    words = ["decode", f"{'resize' if squash else 'resize_small'}({resized}{more})"]
    if not squash or (crop and resized != side):
        words.append(f"center_crop({side})")
    if side % patch:
        words.append(f"corner_crop({side // patch * patch})")
    return "|".join(words)


def at_size(words: str, size: int) -> str:
    """Ops of a folder for pictures of another size, which the patches divide: the share that is cut off is kept.

    UserError where the ops name no size.
    """
    words = words.replace("\n", " ")  # as they are read
    head, _, last = words.rpartition("|")
    words = head if last.strip().startswith("corner_crop") else words
    found = _sizes(words)
    if not found:
        raise UserError(f"size={size}: the ops of pictures are {words!r}, which name no size; valid: as they are")
    before = found[-1][2]
    pair = before if isinstance(before, tuple) else (before, before)
    for begin, end, old in reversed(found):
        if isinstance(old, tuple):
            new = "({},{})".format(*(round(n * size / of) for n, of in zip(old, pair)))
        else:
            new = str(round(old * size / min(pair)))
        words = words[:begin] + new + words[end:]
    return words


def _sizes(words: str) -> list[tuple[int, int, int | tuple[int, int]]]:
    """(begin, end, size) of the size that each op of `words` makes, in their order: 224, (224,224) or size=224."""
    import ast

    found = []
    for call in ast.walk(ast.parse(f"({words})", mode="eval")):
        if not isinstance(call, ast.Call) or not isinstance(call.func, ast.Name) or call.func.id not in SIZED:
            continue
        given = call.args[:1] + [k.value for k in call.keywords if k.arg == SIZED[call.func.id]]
        if given:
            found.append((given[0].col_offset - 1, given[0].end_col_offset - 1, ast.literal_eval(given[0])))
    return sorted(found)


def stats_of(found: Mapping, default: str, keys: tuple[str, str], folder: Path) -> str:
    """The name of the pixel statistics that `found` has under `keys`; `default` where it has none."""
    from maeclip_jax.nn.pixels import STATS

    if not found.get(keys[0]):
        return default
    theirs = [tuple(round(float(x), 4) for x in found[k]) for k in keys]
    for name, known in STATS.items():
        if [tuple(round(x, 4) for x in part) for part in known] == theirs:
            return name
    raise UserError(
        f"pictures of {str(folder)!r} are normalised with mean {found[keys[0]]} and deviation "
        f"{found[keys[1]]}, which nn.pixels.STATS does not have; valid: {', '.join(STATS)}"
    )
