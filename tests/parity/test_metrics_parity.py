"""Metrics on the same arrays as scikit-learn, torchmetrics, CLIP_benchmark and published formulas give them."""

import numpy as np
import pytest

from maeclip_jax.evals import accuracy, recall, representation, segmentation
from maeclip_jax.evals.protocol import unit_rows
from tests.parity import compare

metrics = pytest.importorskip("sklearn.metrics")
torch = pytest.importorskip("torch", reason="torch is missing: make test-parity")


def classified(rows=4000, classes=12):
    random = np.random.default_rng(0)
    label_N = random.integers(0, classes, rows)
    score_NxC = random.normal(size=(rows, classes)) + 1.5 * np.eye(classes)[label_N]
    return score_NxC.astype(np.float32), label_N


def test_accuracies_are_those_of_scikit_learn():
    score_NxC, label_N = classified()
    ours = {m.name: m.value for m in accuracy.accuracies(accuracy.ranks(score_NxC, label_N), label_N, 12)}
    theirs = {
        "top1": metrics.top_k_accuracy_score(label_N, score_NxC, k=1),
        "top5": metrics.top_k_accuracy_score(label_N, score_NxC, k=5),
        "mean_per_class": metrics.balanced_accuracy_score(label_N, score_NxC.argmax(1)),
    }
    compare.close("scikit-learn", "top-1, top-5, mean per class", ours, {k: 100 * v for k, v in theirs.items()})


def test_accuracies_are_those_of_torchmetrics():
    found = pytest.importorskip("torchmetrics.functional.classification")
    score_NxC, label_N = classified()
    ours = {m.name: m.value for m in accuracy.accuracies(accuracy.ranks(score_NxC, label_N), label_N, 12)}
    score, label = torch.tensor(score_NxC), torch.tensor(label_N)

    def theirs(k, average):
        return 100 * float(found.multiclass_accuracy(score, label, 12, average=average, top_k=k))

    want = {"top1": theirs(1, "micro"), "top5": theirs(5, "micro"), "mean_per_class": theirs(1, "macro")}
    compare.close("torchmetrics", "top-1, top-5, mean per class", ours, want)


def masks():
    random = np.random.default_rng(1)
    true = random.integers(0, 6, (5, 40, 40))
    found = np.where(random.random(true.shape) < 0.6, true, random.integers(0, 6, true.shape))
    return np.where(random.random(true.shape) < 0.1, 255, true), found


def ours_of(true, found):
    parts = [segmentation.confusion(t, f, 6, (255,)) for t, f in zip(true, found)]
    total = sum(parts)
    made = {m.name: m.value for m in segmentation.metrics(total, background=False)}
    items = segmentation.items_of([str(n) for n in range(len(parts))], np.stack([segmentation.areas(p) for p in parts]))
    assert {name: items[name].mean() for name in made} == pytest.approx(made)
    return made, segmentation.per_class(total)[0]


def test_intersection_over_union_is_that_of_torchmetrics():
    found = pytest.importorskip("torchmetrics.functional.classification")
    true, guess = masks()
    made, iou_C = ours_of(true, guess)
    given = torch.tensor(guess), torch.tensor(true)
    macro, each = (
        found.multiclass_jaccard_index(*given, 6, average=average, ignore_index=255).numpy() * 100
        for average in ("macro", "none")
    )
    compare.close("torchmetrics", "mean IoU, 255 ignored", made["miou"], float(macro))
    compare.close("torchmetrics", "IoU per class, 255 ignored", 100 * iou_C, each)


def test_intersection_over_union_is_that_of_scikit_learn():
    true, guess = masks()
    made, iou_C = ours_of(true, guess)
    real = true != 255
    each = metrics.jaccard_score(true[real], guess[real], average=None)
    compare.close("scikit-learn", "IoU per class, 255 ignored", iou_C, each)
    compare.close("scikit-learn", "mean IoU, 255 ignored", made["miou"], 100 * each.mean())


def gallery(pictures=300, captions=5):
    random = np.random.default_rng(2)
    images = unit_rows(random.normal(size=(pictures, 32)))
    pairs = np.stack([np.repeat(np.arange(pictures), captions), np.arange(captions * pictures)], axis=1)
    return images, unit_rows(images[pairs[:, 0]] + 0.45 * random.normal(size=(len(pairs), 32))), pairs


def test_recall_is_that_of_clip_benchmark():
    theirs = pytest.importorskip("clip_benchmark.metrics.zeroshot_retrieval").recall_at_k
    images, texts, pairs = gallery()
    score = torch.tensor(texts @ images.T)
    right = torch.zeros_like(score, dtype=torch.bool)
    right[pairs[:, 1], pairs[:, 0]] = True
    for what, places, matrix in (
        ("image to text", recall.image_to_text(images, texts, pairs, merge=False), (score.T, right.T)),
        ("text to image", recall.text_to_image(images, texts, pairs, merge=False), (score, right)),
    ):
        mine = {f"R@{k}": 100 * places.hit(k).mean() for k in (1, 5, 10)}
        want = {f"R@{k}": 100 * float((theirs(*matrix, k) > 0).float().mean()) for k in (1, 5, 10)}
        assert 5 < mine["R@1"] < 95
        compare.close("CLIP_benchmark", f"recall, {what}", mine, want)


def test_alignment_and_uniformity_are_those_of_their_authors():
    """Their formulas as published with the paper: Wang and Isola 2020, section 4.2."""
    random = np.random.default_rng(3)
    x, y = (unit_rows(random.normal(size=(500, 24))) for _ in range(2))
    found = {m.name: m.value for m in representation.of_pairs(x, y, np.stack([np.arange(500)] * 2, 1), {})}
    a, b = (torch.tensor(z, dtype=torch.float64) for z in (x, y))
    want = {
        "alignment": (a - b).norm(p=2, dim=1).pow(2).mean(),
        "uniformity_image": torch.pdist(a, p=2).pow(2).mul(-2).exp().mean().log(),
        "uniformity_text": torch.pdist(b, p=2).pow(2).mul(-2).exp().mean().log(),
    }
    mine = {name: found[name] for name in want}
    compare.close(
        "Wang and Isola 2020, in torch", "alignment, uniformity", mine, {k: float(v) for k, v in want.items()}
    )


def test_effective_rank_is_that_of_its_definition():
    x = torch.tensor(np.random.default_rng(4).normal(size=(200, 16)) * np.linspace(0.1, 2, 16))
    share = torch.linalg.svdvals(x)
    share = share / share.sum()
    want = float(torch.exp(-(share * share.log()).sum()))
    compare.close(
        "Roy and Vetterli 2007, in torch", "effective rank", representation.effective_rank(x.numpy()).value, want
    )
