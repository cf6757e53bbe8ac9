"""Self-distillation: a head of prototypes, the targets that a teacher sets, and signs that it has collapsed.

Sources: DINO (Caron et al. 2021, facebookresearch/dino), iBOT (Zhou et al. 2022, bytedance/ibot); centring by Sinkhorn
and Knopp as in DINOv2 (Oquab et al. 2023). Embeddings are of length 1 and float32. Logits are made for a part of the
batch at a time, forward and backward, so that the prototypes of a large head fit; the numbers are those of all at once.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

CENTRINGS = ("mean", "sinkhorn")
TEACHER = "teacher"  # the collection of what a teacher is, and the scope of what it computes, forward alone
ITERATIONS = 3  # of Sinkhorn and Knopp (DINOv2)
Placed = Callable[[jax.Array], jax.Array]  # how logits lie on devices, said to the compiler
UNIFORM, ONE = 0.99, 0.05  # shares of the largest entropy beyond which assignments say nothing


def unit(x: jax.Array, axis: int = -1) -> jax.Array:
    """Vectors along `axis`, of length 1."""
    return x * jax.lax.rsqrt(jnp.sum(jnp.square(x), axis=axis, keepdims=True) + 1e-24)


class PrototypeHead(nn.Module):
    """[..., D] -> three layers with GELU between them -> [..., width] of length 1; and `prototypes` to compare it with.

    As DINO's: every prototype has length 1 (their weight norm with its length held at 1), and none has a bias. Initial
    weights have a deviation of 1 / sqrt(inputs), which at their width of 2,048 is their 0.02; in a narrow head 0.02
    would make embeddings so short that their gradients outweigh the contrast's. Layers are called after how they are
    split over devices (`sharding.RULES`).
    """

    hidden: int
    width: int
    prototypes: int

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        init = nn.initializers.lecun_normal()
        x = x.astype(jnp.float32)
        for name in ("up", "down"):
            x = nn.gelu(nn.Dense(self.hidden, kernel_init=init, name=name)(x), approximate=False)
        x = nn.Dense(self.width, kernel_init=init, name="project")(x)
        of_linear = nn.initializers.variance_scaling(1 / 3, "fan_in", "uniform")  # as torch's
        self.param("prototypes", of_linear, (self.width, self.prototypes))
        return unit(x)


def prototypes(head: Mapping[str, Any]) -> jax.Array:
    """[D, K] of length 1, of a head's parameters."""
    return unit(head["prototypes"].astype(jnp.float32), axis=0)


def in_parts(function: Callable[[Any], Any], rows: Any, parts: int) -> Any:
    """`function` of each of `parts` parts of `rows` (arrays [B, ...]), stacked as [P, ...].

    With more than one, what it makes in between exists for one part at a time: the backward pass makes it again. Part
    p holds rows p, p + P, ..., as many of each device's. `parts` divides B.
    """
    if parts == 1:
        return jax.tree.map(lambda x: x[None], function(rows))
    split = jax.tree.map(lambda x: x.reshape(x.shape[0] // parts, parts, *x.shape[1:]).swapaxes(0, 1), rows)
    return jax.lax.map(jax.checkpoint(function, prevent_cse=False), split)


def parts_within(mib: float, batch: int, logits: int, devices: int = 1) -> int:
    """The least number of parts with which a device's rows, of so many `logits` each, take `mib` MiB in float32."""
    rows = batch // devices if batch % devices == 0 else batch
    counts = (n for n in range(1, rows + 1) if rows % n == 0)
    return next((n for n in counts if 4 * rows // n * logits <= mib * 2**20), rows)


def sinkhorn_centre(
    teacher_BxGxD: jax.Array,
    prototypes_DxK: jax.Array,
    temperature: float,
    parts: int = 1,
    placed: Placed = lambda x: x,
):
    """The centre [K] that spreads a batch evenly over the prototypes: ITERATIONS of Sinkhorn and Knopp.

    softmax((logits - centre) / temperature) is what they end with, the samples' side normalised last. `placed`: said
    of each part's logits, see `Placed`.
    """
    shift_K = None
    for _ in range(ITERATIONS):

        @jax.named_scope(TEACHER)
        def part(x_bxGxD, shift_K=shift_K):
            logits = placed(jnp.dot(x_bxGxD, prototypes_DxK)) / temperature
            if shift_K is not None:
                logits = logits - jax.nn.logsumexp(logits + shift_K[None, None], axis=-1, keepdims=True)
            return jax.nn.logsumexp(logits, axis=(0, 1))

        shift_K = -jax.nn.logsumexp(in_parts(part, teacher_BxGxD, parts), axis=0)
    return -temperature * shift_K


def moved_centre(centre_K: jax.Array, mean_D: jax.Array, prototypes_DxK: jax.Array, momentum: float) -> jax.Array:
    """The running mean of a teacher's logits, after a batch whose mean embedding is `mean_D`; logits are linear."""
    return momentum * centre_K + (1 - momentum) * (mean_D @ prototypes_DxK)


def others(targets: int, views: int) -> jax.Array:
    """[G, V] weights of pairs of a teacher's view and a student's: all but equal views count the same, 1 in all."""
    apart_GxV = 1 - jnp.eye(targets, views)
    return apart_GxV / jnp.sum(apart_GxV)


@jax.named_scope("distillation_loss")
def distilled(
    student_BxVxD: jax.Array,
    teacher_BxGxD: jax.Array,
    student_DxK: jax.Array,
    teacher_DxK: jax.Array,
    centre_K: jax.Array,
    pairs_GxV: jax.Array | None,
    temperatures: tuple[float, float],
    parts: int = 1,
    placed: Placed = lambda x: x,
) -> tuple[jax.Array, dict[str, jax.Array]]:
    """(loss, {"entropy", "spread"}): the cross entropy of what the student assigns with what the teacher does.

    The teacher assigns softmax((logits - centre) / its temperature), the student softmax(logits / its own);
    `temperatures`: (student's, teacher's). `pairs_GxV`: weights of pairs, see `others`; None: view v of the student
    with view v of the teacher, all alike. Entropies are in nats: `entropy` of an assignment on average, `spread` of the
    mean assignment. No gradient reaches the teacher. `placed`: said of each part's logits, see `Placed`.
    """
    teacher_BxGxD, teacher_DxK, centre_K = jax.lax.stop_gradient((teacher_BxGxD, teacher_DxK, centre_K))
    batch, views = student_BxVxD.shape[:2]

    def part(rows):
        student_bxVxD, teacher_bxGxD = rows
        with jax.named_scope(TEACHER):
            logits_bxGxK = placed(jnp.dot(teacher_bxGxD, teacher_DxK)) - centre_K[None, None]
        logs_bxGxK = jax.nn.log_softmax(logits_bxGxK / temperatures[1], axis=-1)
        targets_bxGxK = jnp.exp(logs_bxGxK)
        own_bxVxK = jax.nn.log_softmax(placed(jnp.dot(student_bxVxD, student_DxK)) / temperatures[0], axis=-1)
        if pairs_GxV is None:
            loss = -jnp.sum(targets_bxGxK * own_bxVxK) / views
        else:
            loss = -jnp.sum(jnp.einsum("bgk,gv->bvk", targets_bxGxK, pairs_GxV) * own_bxVxK)
        return loss, -jnp.sum(targets_bxGxK * logs_bxGxK), jnp.sum(targets_bxGxK, axis=(0, 1))

    loss, entropy, assigned_K = (jnp.sum(x, axis=0) for x in in_parts(part, (student_BxVxD, teacher_BxGxD), parts))
    count = batch * teacher_BxGxD.shape[1]
    mean_K = assigned_K / count
    spread = -jnp.sum(mean_K * jnp.log(jnp.maximum(mean_K, 1e-30)))
    return loss / batch, {"entropy": entropy / count, "spread": spread}


@jax.named_scope(TEACHER)
def dimensions(x_BxGxD: jax.Array) -> jax.Array:
    """How many directions embeddings spread over: (sum of the eigenvalues of their covariance)^2 / sum of squares.

    1 to D; 1 where all lie on a line, and 0 where all are the same.
    """
    x_RxD = x_BxGxD.reshape(-1, x_BxGxD.shape[-1])
    away_RxD = x_RxD - jnp.mean(x_RxD, axis=0, keepdims=True)
    covariance_DxD = away_RxD.T @ away_RxD / x_RxD.shape[0]
    return jnp.square(jnp.trace(covariance_DxD)) / jnp.maximum(jnp.sum(jnp.square(covariance_DxD)), 1e-30)


def collapsed(entropy: float, spread: float, count: int, what: str) -> str:
    """What is wrong with a teacher's assignments to `count` prototypes, in a sentence; "" where nothing is."""
    most = math.log(count)
    if entropy > UNIFORM * most:
        return (
            f"the teacher assigns {what} to all {count} prototypes alike (entropy {entropy:.2f} of at most {most:.2f} "
            "nats), so there is nothing to distil: lower distil.teacher_temperature"
        )
    if spread < ONE * most:
        return (
            f"the teacher assigns all {what} to the same prototypes (entropy of the mean {spread:.2f} of at most "
            f"{most:.2f} nats), so there is nothing to distil: raise distil.teacher_temperature, or set "
            "distil.centring=sinkhorn"
        )
    return ""
