"""Accuracy of scores per class, and labelled features: what every classifier on frozen features shares."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from maeclip_jax.errors import UserError
from maeclip_jax.evals.items import Items
from maeclip_jax.evals.protocol import Context, Metric, keys_of, percent


def ranks(score_NxC: np.ndarray, label_N: np.ndarray) -> np.ndarray:
    """Per row, how many wrong classes stand before the right one (0 = found), [N].

    Classes that are not strictly worse stand before it: ties, and anything that is not a number, count against the
    model.
    """
    own_Nx1 = score_NxC[np.arange(len(label_N)), label_N][:, None]
    return score_NxC.shape[1] - 1 - (score_NxC < own_Nx1).sum(1)


def accuracies(
    rank_N: np.ndarray, label_N: np.ndarray, classes: int, keys: Sequence[str] | None = None
) -> list[Metric]:
    """top1, mean_per_class (over the classes that have rows), top5 where there are more than 5 classes.

    `keys`: of the rows; the items of mean_per_class are the classes, by their number.
    """
    seen_C = np.bincount(label_N, minlength=classes)
    right_C = np.bincount(label_N, weights=rank_N == 0, minlength=classes)
    share_C, chance = right_C[seen_C > 0] / seen_C[seen_C > 0], 100 / classes
    first, each = Items(100 * (rank_N == 0), keys), of_classes(share_C, seen_C)
    out = [
        percent("top1", 100 * np.mean(rank_N == 0), chance=chance, items=first),
        percent("mean_per_class", 100 * np.mean(share_C), chance=chance, items=each),
    ]
    if classes > 5:
        five = Items(100 * (rank_N < 5), keys)
        out.append(percent("top5", 100 * np.mean(rank_N < 5), chance=500 / classes, items=five))
    return out


def of_classes(share_C: np.ndarray, seen_C: np.ndarray) -> Items:
    """Shares 0..1 of the classes that are seen, as the items of their mean."""
    names = [f"class {c}" for c in np.flatnonzero(seen_C)]
    # Weights, though all the same: shares of 0 and 1 alone must not pass for draws of one share.
    return Items(100 * np.asarray(share_C), names, weight=np.ones(len(names)))


class Labelled:
    """Data sets of labelled pictures as features: the same classes in all of them, checked.

    `data`: {what it is for: data config}, ops keep "image" and "label". `classes`: how many, where the sources do
    not name them; None = as many as the largest label needs.
    """

    def __init__(
        self,
        context: Context,
        who: str,
        data: Mapping[str, Mapping],
        pool: str,
        batch_size: int,
        classes: int | None = None,
    ):
        self.context, self.who, self.data, self.pool, self.batch_size = context, who, data, pool, batch_size
        self.names, self.classes = self._names(classes), classes
        self.keys: list[str] = []  # of the rows of `data`, once loaded
        for config in data.values():
            context.want(config, pool)

    def _names(self, classes: int | None) -> list[str] | None:
        named = {what: getattr(self.context.source(config), "classes", None) for what, config in self.data.items()}
        named = {what: list(names) for what, names in named.items() if names}
        for what, names in named.items():
            first, other = next(iter(named.items()))
            if names != other:
                raise UserError(
                    f"{self.who}: the classes of {first} and {what} differ: {len(other)} ({_few(other)}) and "
                    f"{len(names)} ({_few(names)}); they must be the same, in the same order"
                )
            if classes is not None and len(names) != classes:
                raise UserError(f"{self.who}: classes={classes}, but {what} has {len(names)} classes ({_few(names)})")
        return next(iter(named.values()), None)

    def load(self, params: Any) -> dict[str, tuple[np.ndarray, np.ndarray]]:
        """{what: (features float32 [N, D], labels int [N])}; sets `classes` to their number. Raises UserError."""
        out = {what: self._one(params, what, config) for what, config in self.data.items()}
        largest = max(int(label_N.max()) for _, label_N in out.values())
        self.classes = len(self.names) if self.names else self.classes or largest + 1
        for what, (_, label_N) in out.items():
            check_labels(label_N, self.classes, f"{self.who}: {what}")
        if self.classes < 2:
            raise UserError(f"{self.who}: {self.classes} class in the data; at least 2 are needed")
        return out

    def _one(self, params: Any, what: str, config: Mapping) -> tuple[np.ndarray, np.ndarray]:
        made = self.context.features(params, config, self.batch_size, self.pool)
        if "label" not in made:
            raise UserError(f'{self.who}: {what} has no "label"; end its ops with label|keep("image","label")')
        if not len(made["label"]):
            raise UserError(f"{self.who}: {what} has no pictures; check the split")
        bad = np.count_nonzero(~np.isfinite(made["image"]).all(1))
        if bad:
            raise UserError(f"{self.who}: {bad} of {len(made['image'])} features of {what} are not finite numbers")
        if what == "data":
            self.keys = keys_of(made.get("key"), len(made["image"]))
        return made["image"], made["label"].astype(np.int64)

    def name(self, c: int) -> str:
        """Of class c."""
        return self.names[c] if self.names else str(c)


def check_labels(label_N: np.ndarray, classes: int, what: str) -> None:
    """Raises UserError where a label is not that of a class."""
    bad_N = label_N[(label_N < 0) | (label_N >= classes)]
    if len(bad_N):
        raise UserError(f"{what} has label {int(bad_N[0])}, but there are {classes} classes (0 to {classes - 1})")


def _few(names: list[str]) -> str:
    return ", ".join(names[:3]) + (", ..." if len(names) > 3 else "")
