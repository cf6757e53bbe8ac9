"""The paper's tables: ImageNet zero-shot and linear probe, COCO and Flickr30k retrieval, COCO-a; segmentation on VOC.

    python -m maeclip_jax.main --mode=eval --config=runs/a/config.json --workdir=runs/a
        --config.evals=experiments/eval/paper.py:only=imagenet+coco

Argument: only = some of imagenet, imagenet_v2, coco, flickr, coco_a, voc joined by "+" (default: all); probe = lbfgs |
lars (MAE's recipe: bicubic crops and mirroring, tested on the middle 224 of 256; a crop that does not fit is drawn anew
where MAE's is clipped); pool = what the probe and k-NN see: own | gap | max | cls | ... Other ways than the plain ones
have names of their own (imagenet_linear_probe_lars_max), so their results stand beside the plain ones. templates,
classes = FILE.json: prompts and names of ImageNet's classes other than ours, such as those that OpenAI published.

VTAB has a suite of its own (vtab.py), VQA an experiment (experiments/vqa.py). COCO-a is our reading of the paper's
columns "COCOA" (most likely, not certain): whole pictures, any action that annotators agree on counts. GradCAM and
segmentation are pictures in the paper, without numbers. ADE20K is not here: TFDS's scene_parse150 holds the instance
masks of the challenge of 2017, without names; give ADEChallengeData2016 to builders.image_mask_folder, its name to
folders.py.
"""

from __future__ import annotations

from pathlib import Path

from experiments import suites
from experiments.argument import parse_arg
from maeclip_jax import errors

SETS = ("imagenet", "imagenet_v2", "coco", "flickr", "coco_a", "voc")


def get_evals(config, arg=None):
    arg = parse_arg(arg, only="+".join(SETS), probe="lbfgs", pool="own", templates="imagenet", classes="imagenet")
    chosen = arg.only.split("+")
    for name in chosen:
        errors.choose("set", name, dict.fromkeys(SETS))
    errors.choose("probe", arg.probe, dict.fromkeys(("lbfgs", "lars")))
    evals, length = {}, suites.length(config)
    prompts = dict(classes=arg.classes, templates=arg.templates, length=length)
    words = ["own" if w == "imagenet" else Path(w).stem for w in (arg.templates, arg.classes)]
    if "imagenet" in chosen:
        test = suites.pictures(config, "imagenet2012", "validation", label="label")
        train = suites.pictures(config, "imagenet2012", "train[:99%]", label="label")
        val = suites.pictures(config, "imagenet2012", "train[99%:]", label="label")
        learnt, tested, side = dict(train), test, config.model.image_tower.size
        if arg.probe == "lars":  # of the probe alone: neighbours are looked for among pictures as they are
            crop = f'random_resized_crop({side},area=(0.08,1),antialias="exact")'  # bicubic
            learnt["ops"] = f'decode|{crop}|flip_lr|label|keep("image","label")'
            tested = suites.pictures(config, "imagenet2012", "validation", resize="margin", label="label")
        evals[suites.variant("imagenet_zero_shot", *words)] = dict(type="zero_shot", data=test, **prompts)
        evals[suites.variant("imagenet_linear_probe", arg.probe, arg.pool)] = dict(
            type="linear_probe", data=tested, train=learnt, val=val, solver=arg.probe, pool=arg.pool
        )
        knn = suites.variant("imagenet_knn", arg.pool)
        evals[knn] = dict(type="knn", data=test, train=train, pool=arg.pool)
    if "imagenet_v2" in chosen:
        test = suites.pictures(config, "imagenet_v2/matched-frequency", "test", label="label")
        evals[suites.variant("imagenet_v2_zero_shot", *words)] = dict(type="zero_shot", data=test, **prompts)
    if "coco" in chosen:
        evals["coco_retrieval"] = suites.retrieval(config, "coco_captions", "test")
    if "flickr" in chosen:
        evals["flickr_retrieval"] = suites.retrieval(config, "flickr30k", "test")
    if "coco_a" in chosen:
        data = suites.pictures(config, "coco_a", "test", labels="labels(32)")
        evals["coco_a_zero_shot"] = dict(type="zero_shot", data=data, length=length, templates="actions")
    if "voc" in chosen:
        evals |= suites.dense(config, "voc", "voc_segmentation", "val", background_words="stuff", sliding=True)
    return evals
