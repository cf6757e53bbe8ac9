"""A linear head trained on augmented pictures through a frozen encoder, as MAE measures itself.

Batch normalisation without scale and shift, then a linear layer drawn from N(0, 0.01); LARS with momentum 0.9 and no
weight decay; the rate is for 256 rows and grows with the batch; linear warm-up, then half a cosine to zero (He et al.
2022, appendix A.2, and facebookresearch/mae). The features of every batch are computed anew, which is what
augmentation costs. A step of LARS is about rate / 1000 of the weights' own length, so that a head needs thousands of
steps: on few pictures take more epochs, not a larger rate, which the intercept (not scaled by LARS) cannot bear.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from contextlib import closing
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

from maeclip_jax.errors import UserError
from maeclip_jax.evals.accuracy import check_labels
from maeclip_jax.evals.logistic import one_device
from maeclip_jax.evals.protocol import Context, select

EPSILON = 1e-6  # of the normalisation
MOMENTUM = 0.1  # share of the newest batch in the running mean and variance


class LinearHead(NamedTuple):
    """`w` [D, C], `b` [C]; running `mean` [D] and `variance` [D] of the features."""

    w: Any
    b: Any
    mean: Any
    variance: Any

    def scores(self, x_NxD: np.ndarray) -> np.ndarray:
        """Logits [N, C], normalised with the running statistics."""
        return np.asarray((x_NxD - self.mean) / np.sqrt(self.variance + EPSILON) @ self.w + self.b)


def train(
    context: Context,
    params: Any,
    data: Mapping,
    classes: int,
    pool: str,
    seed: int,
    *,
    rate: float,
    batch_size: int,
    epochs: int,
    warmup: int,
) -> tuple[LinearHead, list[list[float]]]:
    """The head, and [loss, accuracy in percent] of every epoch. Raises UserError if no batch can be filled."""
    rows = len(context.source(data))
    per_epoch = rows // batch_size
    if not per_epoch:
        raise UserError(f"linear_probe: train has {rows} pictures, and a batch {batch_size}; it must fill one")
    steps = math.ceil(epochs * per_epoch)
    peak = rate * batch_size / 256
    schedule = optax.warmup_cosine_decay_schedule(0.0, peak, min(round(warmup * per_epoch), steps - 1), steps)
    optimizer = lars(schedule)

    def pooled(objective, params, batch):
        made = objective.apply({"params": params}, {"image": batch["image"]}, (pool,), method="features")
        return {"x": made[pool].astype(jnp.float32), "label": batch["label"]}

    # The head is small: every process trains the same one, on the same rows and on one device.
    features, updated = context.compile(pooled), jax.jit(partial(update, optimizer))
    head, state, history, sums = None, None, [], np.zeros(2)
    with (
        closing(context.train_batches(data, batch_size, seed)) as batches,
        context.progress("steps", steps) as progress,
    ):
        for step, batch in zip(range(steps), batches):
            made = features(params, select(batch, "image", "label", who="linear_probe"))
            check_labels(made["label"], classes, "linear_probe: train")
            with one_device():
                if head is None:
                    head = start(made["x"].shape[1], classes, seed)
                    state = optimizer.init({"w": head.w, "b": head.b})
                head, state, metrics = updated(head, state, made["x"], made["label"])
            sums += np.asarray(metrics)
            if (step + 1) % per_epoch == 0 or step + 1 == steps:
                history.append((sums / (step % per_epoch + 1)).tolist())
                sums[:] = 0
            progress.update()
    return LinearHead(*(np.asarray(part) for part in head)), history


def lars(rate: float | optax.Schedule) -> optax.GradientTransformation:
    """LARS as facebookresearch/mae has it: no decay, and an intercept whose steps are not scaled.

    The rate follows the momentum. In `optax.lars` (0.2.8) it goes before it, so that a rate which changes acts late.
    """
    trust = optax.masked(optax.scale_by_trust_ratio(trust_coefficient=0.001), {"w": True, "b": False})
    return optax.chain(trust, optax.trace(decay=0.9), optax.scale_by_learning_rate(rate))


def start(width: int, classes: int, seed: int) -> LinearHead:
    """A head for features of `width`, drawn from N(0, 0.01), float32."""
    w = 0.01 * np.random.default_rng(seed).normal(size=(width, classes))
    head = LinearHead(w, np.zeros(classes), np.zeros(width), np.ones(width))
    return LinearHead(*(part.astype(np.float32) for part in head))


def update(optimizer, head: LinearHead, state, x_BxD, label_B):
    """The head and the optimizer's state after one batch, and [loss, accuracy in percent] [2] before it."""
    mean, variance = jnp.mean(x_BxD, axis=0), jnp.var(x_BxD, axis=0)
    normal = (x_BxD - mean[None]) * jax.lax.rsqrt(variance + EPSILON)[None]

    def loss(linear):
        logit_BxC = normal @ linear["w"] + linear["b"][None]
        own = jnp.take_along_axis(logit_BxC, label_B[:, None], axis=1)
        others = jnp.sum(logit_BxC >= own, axis=1) - 1
        entropy = optax.softmax_cross_entropy_with_integer_labels(logit_BxC, label_B)
        return jnp.mean(entropy), 100 * jnp.mean(others == 0)

    linear = {"w": head.w, "b": head.b}
    (value, accuracy), gradient = jax.value_and_grad(loss, has_aux=True)(linear)
    change, state = optimizer.update(gradient, state, linear)
    linear = optax.apply_updates(linear, change)
    count = len(label_B)
    running = [
        (1 - MOMENTUM) * old + MOMENTUM * new
        for old, new in ((head.mean, mean), (head.variance, variance * count / max(count - 1, 1)))
    ]
    return LinearHead(linear["w"], linear["b"], *running), state, jnp.stack([value, accuracy])
