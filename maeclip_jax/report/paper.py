"""The numbers of Weers et al., "Masked Autoencoding Does Not Help Natural Language Supervision at Scale" (CVPR 2023),
and the setting that each belongs to. All are percent and come from the authors' slides: what the slides do not show
is not here. The tables are called T1 to T4 in the order of the slides.
"""

from __future__ import annotations

from typing import NamedTuple

MARK = "slides"
SCALES = {"low": "11.3M", "high": "1.4B"}  # image-text pairs that the models were pretrained on
PAIRS = {"low": 11.3e6, "high": 1.4e9}  # the same as numbers
NEAR = 1.25  # as a factor: addresses of a web data set die, so that nobody has quite the paper's number of pairs
OBJECTIVES = ("MAE", "M3AE", "CLIP", "MAE-CLIP")
# What a run must be to stand beside a number of the paper. The size is how the paper is remembered, not in the slides.
SETTING = {"size": "B/16", "keep": 1.0, "loss": "softmax", "decode": "both", "runlocal": False}
# How the name of a row says a setting that is not the paper's.
LABELS = {"keep": "keeps", "loss": "loss", "decode": "decodes", "runlocal": "runlocal"}
# Data sets as they are called in TFDS (or by the builders of this project) -> as people call them.
NAMES = {
    "imagenet2012": "ImageNet", "imagenet_v2": "ImageNet-V2", "imagenet_a": "ImageNet-A", "imagenet_r": "ImageNet-R",
    "imagenet_sketch": "ImageNet-Sketch", "coco_captions": "COCO", "flickr30k": "Flickr30k", "coco_a": "COCO-a",
    "clevr": "CLEVR", "vqav2": "VQAv2", "gqa": "GQA", "voc_segmentation": "Pascal VOC", "scene_parse150": "ADE20K",
}  # fmt: skip
# The split that the protocol of a data set asks for; elsewhere any whole split.
SPLITS = {"imagenet2012": "validation", "coco_captions": "test", "flickr30k": "test"}


class Column(NamedTuple):
    """What is measured: an evaluator's type, a data set, a metric."""

    type: str
    data: str
    metric: str


PROBE = Column("linear_probe", "imagenet2012", "top1")
ZERO_SHOT = Column("zero_shot", "imagenet2012", "top1")
CLEVR, VQAV2, GQA = (Column("vqa", data, "accuracy") for data in ("clevr", "vqav2", "gqa"))
COCO = (
    Column("retrieval", "coco_captions", "image_to_text_R@1"),
    Column("retrieval", "coco_captions", "text_to_image_R@1"),
)
FLICKR = (Column("retrieval", "flickr30k", "image_to_text_R@1"), Column("retrieval", "flickr30k", "text_to_image_R@1"))
ACTIONS = (Column("zero_shot", "coco_a", "top1"), Column("zero_shot", "coco_a", "top5"))

# Table -> columns, and (objective, pooling, scale) -> a value per column. "" = the slides do not say which pooling.
T1 = ((PROBE,), {
    ("MAE", "", "low"): (33.9,), ("M3AE", "", "low"): (52.5,), ("CLIP", "", "low"): (52.6,),
    ("MAE-CLIP", "", "low"): (58.9,), ("M3AE", "", "high"): (69.3,), ("CLIP", "max", "high"): (77.5,),
    ("MAE-CLIP", "max", "high"): (76.6,),
})  # fmt: skip
T2 = ((CLEVR, VQAV2, GQA), {
    ("M3AE", "", "high"): (96.9, 59.9, 53.3),
    ("CLIP", "", "high"): (87.8, 61.8, 55.0),
    ("MAE-CLIP", "", "high"): (92.8, 61.9, 55.3),
})  # fmt: skip
T3 = ((ZERO_SHOT, PROBE), {
    ("CLIP", "gap", "high"): (61.8, 75.9), ("CLIP", "max", "high"): (63.7, 77.5),
    ("MAE-CLIP", "gap", "high"): (57.4, 75.7), ("MAE-CLIP", "max", "high"): (60.9, 76.6),
})  # fmt: skip
T4 = ((*COCO, *FLICKR, *ACTIONS), {
    ("CLIP", "gap", "high"): (51.9, 36.6, 78.8, 62.3, 24.2, 46.9),
    ("CLIP", "max", "high"): (55.3, 39.0, 80.5, 65.3, 22.7, 51.6),
    ("MAE-CLIP", "gap", "high"): (53.0, 37.0, 77.3, 62.0, 20.7, 39.5),
    ("MAE-CLIP", "max", "high"): (54.4, 37.7, 81.2, 64.2, 24.6, 41.4),
})  # fmt: skip
TABLES = {
    "T1. Linear probe on ImageNet": (*T1, "The 1.4B values are those of the MAX rows of T3, so their pooling is taken "
        "to be MAX (inferred); the pooling of the 11.3M models is not known."),
    "T2. VQA finetuning": (*T2, "How the models were pooled and fused with the question is not known."),
    "T3. Pooling, ImageNet": (*T3, "Which row is which model is cut off in the slides and restored (inferred)."),
    "T4. Zero-shot retrieval (R@1) and visual actions": (*T4, "The slides' table says neither the scale (taken to be "
        "1.4B) nor what the set in its last two columns is: read as COCO-a, visual actions, which is a guess; check "
        "the paper before quoting these two columns."),
}  # fmt: skip


def scale_of(pairs: float | None) -> str:
    """The scale whose number of different pairs this is, or nearly; "" if it is none's, or not known."""
    near = [s for s, wanted in PAIRS.items() if pairs and wanted / NEAR <= pairs <= NEAR * wanted]
    return near[0] if near else ""


def number(column: Column, objective: str, pool: str, scale: str, split: str) -> float | None:
    """The paper's value for a run of the paper's setting; `pool`: of the image tower; None where it has none."""
    if split != SPLITS.get(column.data, split) or "[" in split:
        return None
    for columns, rows in (T3, T4, T2, T1):  # T3 says the pooling of the linear probe, T1 does not
        for key in ((objective, pool, scale), (objective, "", scale)):
            if column in columns and key in rows:
                return rows[key][columns.index(column)]
    return None
