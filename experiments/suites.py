"""What the suites in experiments/eval/ share: evaluators on a data set, with pictures as large as the run's.

A suite is `get_evals(config, arg) -> {name: evaluator config}`, given the config of the run it evaluates.
"""

from __future__ import annotations

import re

import ml_collections

PLAIN = ("own", "lbfgs", "1k")  # values of a suite's argument that a name does not say


def tfds(name: str, split: str) -> dict:
    """A split of a prepared data set."""
    return dict(kind="tfds", dir="", name=name, split=split)


def variant(name: str, *choices: str) -> str:
    """`imagenet_knn`, `max` -> `imagenet_knn_max`: what is measured in another way than the plain one has a name of its
    own, so that the results of both are kept."""
    return "_".join([name, *(re.sub(r"\W+", "_", word).strip("_") for word in choices if word not in PLAIN)])


def pictures(config: ml_collections.ConfigDict, name: str, split: str, *, resize: str = "own", **keep: str) -> dict:
    """Data of pictures as the model takes them. `resize`: own (config.preprocess.image) | squash (all of it) | double
    (all of it, twice as large) | margin (the middle of one whose shorter side is 256 for a model of 224, bicubic, as
    MAE evaluates its linear probe).

    `keep`: name in the batch -> op that makes it ("" for none): label="label", mask="mask|object_classes".
    """
    side = config.model.image_tower.size
    decode, _, geometry = config.preprocess.image.partition("|")
    margin = f"resize_small({round(side * 256 / 224)})|center_crop({side})"
    geometry = {"own": geometry, "squash": f"resize({side})", "double": f"resize({2 * side})", "margin": margin}[resize]
    before = [op for op in keep.values() if "mask" in op]  # a mask is cut and resized along with its picture
    after = [op for op in keep.values() if op and op not in before]
    names = ",".join(f'"{n}"' for n in ("image", *keep))
    return dict(source=tfds(name, split), ops="|".join([decode, *before, geometry, *after, f"keep({names})"]))


def length(config: ml_collections.ConfigDict) -> int:
    """Tokens of a prompt; a run that reads no text needs none."""
    tower = config.model.get("text_tower") or {}
    return tower.get("length", 1)


def classification(config, title: str, train: tuple, test: tuple, *, templates: str = "photos", **zero_shot) -> dict:
    """Zero-shot, linear probe, k-NN and few-shot. `train`, `test`: (data set, split)."""
    data, bank = (pictures(config, *where, label="label") for where in (test, train))
    return {
        f"{title}_zero_shot": dict(
            type="zero_shot", data=data, length=length(config), templates=templates, **zero_shot
        ),
        f"{title}_linear_probe": dict(type="linear_probe", data=data, train=bank),
        f"{title}_knn": dict(type="knn", data=data, train=bank),
        f"{title}_few_shot": dict(type="few_shot", data=data, train=bank),
    }  # fmt: skip


def retrieval(config, name: str, split: str, *, captions: int = 5, duplicates: str = "apart") -> dict:
    """The protocol of COCO and Flickr30k: `captions` a picture, recall both ways."""
    ops = f"{config.preprocess.image}|captions({captions})|tokenize({length(config)})"
    data = dict(source=tfds(name, split), ops=f'{ops}|keep("image","text")')
    return dict(type="retrieval", data=data, duplicates=duplicates, batch_size=100)


def dense(
    config,
    title: str,
    name: str,
    split: str,
    *,
    mask="mask",
    templates="photos",
    tolerance=None,
    sliding=False,
    **segmentation,
) -> dict:
    """Zero-shot segmentation, and grounding maps under the run's own pooling, GAP and MAX; with `sliding`, segmentation
    of pictures twice as large through a sliding window, too.

    `tolerance`: of the pointing game; None: its 15 pixels in pictures of 224, and the same share of smaller ones.

    Grad-CAM weighs the tokens that leave the final norm: before it, a tower under max pooling shows next to nothing
    (see evals/saliency.py).
    """
    data = pictures(config, name, split, resize="squash", mask=mask)
    words = dict(length=length(config), templates=templates)
    side, depth, large = config.model.image_tower.size, config.model.image_tower.depth, {}
    if sliding:
        twice = pictures(config, name, split, resize="double", mask=mask)
        large[f"{title}_segmentation_{2 * side}"] = dict(
            type="segmentation", data=twice, **words, **segmentation, stride=side // 2, batch_size=8
        )
    tolerance = round(15 * side / 224) if tolerance is None else tolerance
    return {
        f"{title}_segmentation": dict(type="segmentation", data=data, **words, **segmentation),
        **large,
        f"{title}_grounding": grounding(data, depth, tolerance, **words),
    }


def grounding(data: dict, depth: int, tolerance: int, **words) -> dict:
    """Maps of the last of `depth` layers under the run's own pooling, GAP and MAX. `words`: length and templates."""
    return dict(
        type="grounding", data=data, pools=("own", "gap", "max"), block=depth, tolerance=tolerance, **words
    )  # fmt: skip
