#!/bin/sh
# torchmetrics.segmentation.MeanIoU is the mean over all pairs of a picture and a class that it holds.
#
# That is neither the mean IoU that papers print (per class over all pixels of the data set, then over classes, which
# JaccardIndex gives) nor the mean over pictures of each picture's own: a class weighs by the number of pictures that
# hold it or were thought to. On these masks the three differ by two to five points.
#
# torchmetrics 1.9.0, torch 2.9.1, numpy 2.3.5, Python 3.11.7, 2026-11-29, seen:
#   MeanIoU 0.6100, JaccardIndex 0.5832; by hand: pairs of picture and class 0.6100, pictures 0.6286, data set 0.5832
# Fails if MeanIoU or JaccardIndex follows another rule than said here.
set -eu
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install -q torchmetrics==1.9.0 torch==2.9.1 numpy==2.3.5
"$folder/venv/bin/python" - <<'PYTHON'
import numpy as np
import torch
from torchmetrics import JaccardIndex
from torchmetrics.segmentation import MeanIoU

random = np.random.default_rng(0)
true = random.integers(0, 3, (8, 16, 16))
found = np.where(random.random(true.shape) < 0.6, true, random.integers(0, 3, true.shape))
true[:6] = np.where(true[:6] == 2, 0, true[:6])  # class 2 is in two pictures of eight
found[:5] = np.where(found[:5] == 2, 0, found[:5])  # and found in three


def parts(true, found):
    """(pixels of both, pixels of either) of each class [3]."""
    both = [((true == c) & (found == c)).sum() for c in range(3)]
    either = [((true == c) | (found == c)).sum() for c in range(3)]
    return np.array(both, float), np.array(either, float)


masks = torch.tensor(found), torch.tensor(true)
mean_iou = MeanIoU(num_classes=3, input_format="index")
jaccard = JaccardIndex(task="multiclass", num_classes=3)
mean_iou.update(*masks)
jaccard.update(*masks)
both, either = (np.array(x) for x in zip(*(parts(t, f) for t, f in zip(true, found))))  # [pictures, classes]
with np.errstate(invalid="ignore"):
    iou = both / either  # NaN where a picture neither holds a class nor was thought to
by_hand = {
    "pairs of picture and class": np.nanmean(iou),
    "pictures": np.nanmean(iou, axis=1).mean(),
    "data set": (both.sum(0) / either.sum(0)).mean(),
}
a, b = float(mean_iou.compute()), float(jaccard.compute())
print(f"#   MeanIoU {a:.4f}, JaccardIndex {b:.4f}; by hand: {', '.join(f'{k} {v:.4f}' for k, v in by_hand.items())}")
assert abs(a - by_hand["pairs of picture and class"]) < 1e-6
assert abs(b - by_hand["data set"]) < 1e-6
assert abs(a - b) > 0.01 and abs(a - by_hand["pictures"]) > 0.01
PYTHON
