"""The evaluators that run during training: losses, zero-shot, retrieval, reconstructions, as far as they apply."""

from __future__ import annotations

import ml_collections

from experiments import suites
from experiments.scales import ops, scale_of, source, words_are_scenes
from experiments.sizes import SIZES


def evals(arg: ml_collections.ConfigDict, *, contrastive: bool, generative: bool, streams: tuple[str, ...]) -> dict:
    """The evaluators that fit: losses; zero-shot and retrieval where there is a shared space; reconstructions."""
    scale = scale_of(arg)
    val, test, classify = scale["splits"]
    batch = min(scale["batch"], 256)
    batch = 16 if arg.runlocal else min(batch, 100 if arg.scale == "photos" else batch)

    def data(split, **kwargs) -> dict:
        made = source(scale, split, **kwargs.pop("part", {}))
        return dict(source=made, ops=ops(scale, kwargs.pop("streams", streams), train=False, **kwargs))

    found = dict(val=dict(type="loss", every="10%", data=data(val), batch_size=batch))
    if generative:
        found["reconstruction"] = dict(type="reconstruction", every="25%", data=data(val), batch_size=batch)
    if contrastive:
        captions = data(test, captions=3 if words_are_scenes(scale) else 5)
        # Drawn pictures may share a caption word for word; photos do not (the COCO and Flickr protocol).
        duplicates = "merge" if words_are_scenes(scale) else "apart"
        found["retrieval"] = dict(type="retrieval", every="25%", data=captions, batch_size=batch, duplicates=duplicates)
        parts = {"zero_shot": {}}
        if "pairs" in arg and arg.data == "scenes":  # combinations that training may show, and those that it never does
            parts = {f"zero_shot_{among}": {"among": among, "truth": "all"} for among in ("seen", "unseen")}
        for name, part in parts.items() if classify else ():
            pictures = data(classify, streams=("image",), label=True, part=part)
            settings = dict(length=scale["length"], templates="scenes", batch_size=batch)
            found[name] = dict(type="zero_shot", every="10%", data=pictures, **settings)
        if "zero_shot_seen" in parts and classify:
            labelled = dict(streams=("image",), label=True)
            bank = data(classify, part={"truth": "all", "seed": 1}, **labelled)
            probed = data(classify, part={"truth": "all"}, **labelled)
            found["linear_probe"] = dict(type="linear_probe", every="100%", data=probed, train=bank, batch_size=batch)
            found |= _dense(scale, test, batch)
    return found


def _dense(scale: dict, split: str, batch: int) -> dict:
    """Zero-shot segmentation and grounding maps of the first half of a split of drawn scenes, whose masks are exact."""
    made = source(scale, split, truth="all")
    kept = 'keep("image","mask")'
    data = dict(source=made | dict(count=max(1, made["count"] // 2)), ops=f"decode|mask|object_classes|{kept}")
    words = dict(length=scale["length"], templates="scenes", batch_size=batch, every="100%")
    depth = SIZES[scale["size"]]["image"][1]
    return dict(
        segmentation=dict(type="segmentation", data=data, **words),
        grounding=suites.grounding(data, depth, 0, **words),
    )
