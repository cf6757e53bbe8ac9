"""Multinomial logistic regression on features: many strengths of l2 at once, by a batched L-BFGS.

The objective is that of scikit-learn's LogisticRegression with C = 1 / l2 and an intercept that is not penalised:

    sum over rows of cross-entropy(x W + b, label)  +  l2 / 2 * ||W||^2

It is strictly convex in W, so that whoever minimises it gets the same classifier. Features are used as they are (no
standardisation). What makes it fast, without changing the optimum:

- all values of l2 are solved together: logits of L problems with C classes are one product [N, D] x [D, L * C];
- features are centred (the intercept takes it up) and turned into their principal axes (the penalty does not see
  it), where the Hessian of a softmax is nearly diagonal: curvature_j ~ a * variance_j + l2. L-BFGS (Liu & Nocedal
  1989, two-loop recursion) starts from its inverse, with one number `a` per problem, measured from the last step;
- problems that are done leave the batch; refinements start from the solution of the nearest l2.

Rows go through in blocks, so memory beyond the features themselves is bounded.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

MEMORY = 10  # pairs of L-BFGS
BLOCK_BYTES = 1 << 27  # logits of one block of rows
STATE_BYTES = 1 << 31  # of L-BFGS, for the problems that are solved together
NARROW_FROM = 3e9  # products of an evaluation from which leaving out problems that are done is worth a compilation
TOGETHER = 7  # problems at most that are solved together


class Fit(NamedTuple):
    """Solutions for L strengths: weights [L, D, C], bias [L, C] (-inf: a class without a row), the objective's value
    per row [L], iterations [L], converged [L] (False: stopped at the limit of iterations)."""

    l2: np.ndarray
    weights: np.ndarray
    bias: np.ndarray
    loss: np.ndarray
    iterations: np.ndarray
    converged: np.ndarray

    def scores(self, x_NxD: np.ndarray, which: int = 0) -> np.ndarray:
        """Logits [N, C] of the problem `which`."""
        return x_NxD @ self.weights[which] + self.bias[which]

    def take(self, which: Sequence[int]) -> Fit:
        """Some of the problems."""
        return Fit(*(np.asarray(part)[np.asarray(which)] for part in self))


class _State(NamedTuple):
    """L-BFGS of L problems. K = D + 1 rows of weights, the last one the intercept."""

    w: jax.Array  # [K, L, C]
    gradient: jax.Array  # [K, L, C]
    value: jax.Array  # [L]
    direction: jax.Array  # [K, L, C]
    step: jax.Array  # [L]
    decrement: jax.Array  # [L] estimate of value - minimum, nats a row
    curvature: jax.Array  # [L] `a` of the module's docstring
    steps: jax.Array  # [M, K, L, C] ring of accepted steps ...
    changes: jax.Array  # [M, K, L, C] ... and of the changes of the gradient
    weight: jax.Array  # [M, L] 1 / (step . change), 0 = an empty slot
    slot: jax.Array  # []


class Problem:
    """Features [N, D] with their labels [N], prepared once, solved for any l2. Classes are 0..classes-1."""

    def __init__(self, x_NxD: np.ndarray, label_N: np.ndarray, classes: int):
        x_NxD, self.classes = np.asarray(x_NxD, np.float32), classes
        self.rows, self.width = x_NxD.shape
        # A class without a row would push its intercept to -infinity; it is left out instead.
        self.present, label_N = np.unique(np.asarray(label_N), return_inverse=True)
        self.mean, self.axes, variance = principal_axes(x_NxD)
        self.together = max(1, min(TOGETHER, STATE_BYTES // (8 * (MEMORY + 3) * (self.width + 1) * self.kept)))
        block = min(self.rows, max(256, BLOCK_BYTES // (4 * self.kept * self.together)))
        fill = -self.rows % block
        x_NxK = np.zeros((self.rows + fill, self.width + 1), np.float32)  # rows that fill a block are all zero
        for start in range(0, self.rows, block):
            part = x_NxD[start : start + block]
            x_NxK[start : start + len(part), :-1] = (part - self.mean) @ self.axes
        x_NxK[: self.rows, -1] = 1
        self._put = partial(jax.device_put, device=jax.local_devices()[0])
        self._x = self._put(x_NxK.reshape(-1, block, self.width + 1))
        self._label = self._put(np.pad(label_N.astype(np.int32), (0, fill)).reshape(-1, block))
        self._variance = self._put(np.append(variance, 1).astype(np.float32))

    @property
    def kept(self) -> int:
        """Classes that have a row."""
        return len(self.present)

    def solve(
        self,
        l2_L: Sequence[float],
        *,
        start: Fit | None = None,
        tolerance: float = 1e-5,
        iterations: int = 1000,
        tick: Callable[[int], None] = lambda n: None,
    ) -> Fit:
        """The minima for all strengths, in their order.

        tolerance: stop where the value is estimated to be this share of itself away from the minimum (a share,
        because the loss of classes that can be told apart without a mistake tends to 0). start: solutions of other
        strengths of the same classes; the nearest one is where each problem begins. tick(n): called as problems
        finish.
        """
        l2_L = np.asarray(l2_L, np.float64)
        if not len(l2_L) or not np.all(np.isfinite(l2_L)) or l2_L.min() <= 0:
            raise ValueError(f"l2 must be positive and finite, got {l2_L.tolist()}")
        groups = np.array_split(np.arange(len(l2_L)), -(-len(l2_L) // self.together))
        with one_device():
            fits = [self._solve(l2_L[g], start, tolerance, iterations, tick) for g in groups]
        return Fit(*(np.concatenate(parts) for parts in zip(*fits)))

    def _solve(self, l2_L, start, tolerance, limit, tick) -> Fit:
        count = len(l2_L)
        w = np.zeros((self.width + 1, count, self.kept), np.float32)
        if start is not None:
            nearest = np.abs(np.log(start.l2)[None] - np.log(l2_L)[:, None]).argmin(1)
            weights_LxDxC, bias_LxC = start.weights[nearest][..., self.present], start.bias[nearest][:, self.present]
            w[:-1] = np.matmul(self.axes.T, weights_LxDxC).swapaxes(0, 1)
            w[-1] = np.where(np.isfinite(bias_LxC), bias_LxC, 0) + np.matmul(self.mean, weights_LxDxC)
        l2_KxL = np.broadcast_to(l2_L.astype(np.float32) / self.rows, (self.width + 1, count)).copy()
        l2_KxL[-1] = 0
        # At W = 0 the curvature is variance / classes, exactly.
        state, active = _begin(self._put(w), np.float32(1 / self.kept)), np.arange(count)
        found, value = np.empty_like(w), np.empty(count)
        done, used = np.zeros(count, bool), np.zeros(count, np.int64)
        for n in range(limit + 1):
            state = _advance(self._x, self._label, self._variance, self._put(l2_KxL[:, active]), self.rows, state)
            decrement, step = np.asarray(state.decrement), np.asarray(state.step)
            # The estimate is worth something after a few steps. A step that shrinks and shrinks: float32 sees no
            # difference any more.
            now = ((decrement <= tolerance * np.asarray(state.value)) & (n >= 3)) | (step < 1e-4)
            finished = int(np.count_nonzero(now & ~done[active]))
            if finished:
                tick(finished)
            used[active] = np.where(done[active], used[active], n)
            done[active] |= now
            left = ~done[active]
            large = self._x.size * self.kept * len(left) > NARROW_FROM
            if not left.any() or n == limit or (large and left.sum() <= len(left) // 2):
                found[:, active], value[active] = np.asarray(state.w), np.asarray(state.value)
                if not left.any() or n == limit:
                    break
                state, active = _narrow(state, np.flatnonzero(left)), active[left]
        if not done.all():
            tick(int(np.count_nonzero(~done)))
        weights_LxDxC = np.zeros((count, self.width, self.classes), np.float32)
        bias_LxC = np.full((count, self.classes), -np.inf, np.float32)
        back_LxDxC = np.matmul(self.axes, found[:-1].swapaxes(0, 1))
        weights_LxDxC[..., self.present] = back_LxDxC
        bias_LxC[:, self.present] = found[-1] - np.matmul(self.mean, back_LxDxC)
        return Fit(l2_L, weights_LxDxC, bias_LxC, value, used, done)


def one_device():
    """A context in which programs run on the first device of this process, whatever mesh is around it."""
    automatic = (jax.sharding.AxisType.Auto,)
    return jax.set_mesh(jax.make_mesh((1,), ("one",), axis_types=automatic, devices=jax.local_devices()[:1]))


def principal_axes(x_NxD: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Mean [D], orthonormal axes [D, D] in columns, variance along each [D]; axes without variance are zero columns."""
    mean_D = x_NxD.mean(0, dtype=np.float64).astype(np.float32)
    covariance_DxD = np.zeros((x_NxD.shape[1],) * 2)
    for start in range(0, len(x_NxD), 8192):
        part = (x_NxD[start : start + 8192] - mean_D).astype(np.float64)
        covariance_DxD += part.T @ part
    variance_D, axes_DxD = np.linalg.eigh(covariance_DxD / len(x_NxD))
    # What is left below float32's own rounding of the features is noise: no weight is spent on it.
    real_D = variance_D > 1e-12 * max(variance_D[-1], 1e-30)
    return mean_D, (axes_DxD * real_D).astype(np.float32), np.where(real_D, variance_D, 0)


def _value_and_gradient(x, label, l2_KxL, rows, w_KxLxC):
    """Cross-entropy a row plus penalty [L], and its gradient [K, L, C]."""
    k, count, classes = w_KxLxC.shape
    high = partial(jnp.matmul, precision=jax.lax.Precision.HIGHEST)

    def block(carry, part):
        (x_BxK, label_B), (value_L, gradient) = part, carry
        logit = high(x_BxK, w_KxLxC.reshape(k, -1)).reshape(-1, count, classes)
        top = jnp.max(logit, axis=-1, keepdims=True)
        share = jnp.exp(logit - top)
        total = jnp.sum(share, axis=-1, keepdims=True)
        hit = jnp.arange(classes)[None, None] == label_B[:, None, None]
        real_B = x_BxK[:, -1:]  # rows that fill the block count for nothing
        own = jnp.sum(jnp.where(hit, logit, 0), axis=-1)
        value_L = value_L + jnp.sum(real_B * (jnp.log(total[..., 0]) + top[..., 0] - own), axis=0)
        error = (share / total - hit).reshape(-1, count * classes)
        return (value_L, gradient + high(x_BxK.T, error)), None

    zero = jnp.zeros(count), jnp.zeros((k, count * classes))
    (value_L, gradient), _ = jax.lax.scan(block, zero, (x, label))
    penalty = l2_KxL[..., None] * w_KxLxC
    return value_L / rows + 0.5 * _dot(penalty, w_KxLxC), gradient.reshape(w_KxLxC.shape) / rows + penalty


def _dot(a_KxLxC, b_KxLxC):
    return jnp.sum(a_KxLxC * b_KxLxC, axis=(0, 2))


@jax.jit
def _begin(w, curvature) -> _State:
    """Nothing is known: the first `_advance` accepts whatever value it finds at `w`."""
    flat, count = jnp.zeros_like(w), w.shape[1]
    ring = jnp.zeros((MEMORY, *w.shape))
    per = partial(jnp.full, count)
    return _State(
        w, flat, per(jnp.inf), flat, per(1.0), per(jnp.inf), per(curvature), ring, ring, jnp.zeros((MEMORY, count)), 0
    )


@partial(jax.jit, static_argnums=4, donate_argnums=5)
def _advance(x, label, variance_K, l2_KxL, rows, s: _State) -> _State:
    """One evaluation for every problem: takes the step if the value falls enough, else shortens it."""
    trial = s.w + s.step[None, :, None] * s.direction
    value, gradient = _value_and_gradient(x, label, l2_KxL, rows, trial)
    slope = _dot(s.gradient, s.direction)
    rounding = 1e-6 * jnp.abs(value)  # of a sum in float32
    good = value <= s.value + 1e-4 * s.step * slope + rounding
    pick = partial(jnp.where, good[None, :, None])

    step, change = pick(trial - s.w, 0), pick(gradient - s.gradient, 0)
    product = _dot(step, change)
    spread = _dot(variance_K[:, None, None] * step, step)
    measured = jnp.clip((product - _dot(l2_KxL[..., None] * step, step)) / jnp.maximum(spread, 1e-30), 1e-7, 0.5)
    curvature = jnp.where(good & (spread > 0), measured, s.curvature)
    steps, changes = s.steps.at[s.slot].set(step), s.changes.at[s.slot].set(change)
    weight = s.weight.at[s.slot].set(jnp.where(product > 1e-30, 1 / product, 0))
    slot = (s.slot + 1) % MEMORY

    w, gradient = pick(trial, s.w), pick(gradient, s.gradient)
    hessian = curvature[None] * variance_K[:, None] + l2_KxL
    direction = -_inverse_hessian(gradient, steps, changes, weight, slot, hessian[..., None])
    shorter = -slope * s.step / (2 * jnp.maximum((value - s.value) / s.step - slope, 1e-30))  # minimum of a parabola
    return _State(
        w,
        gradient,
        jnp.where(good, value, s.value),
        pick(direction, s.direction),
        jnp.where(good, 1.0, jnp.clip(shorter, 0.1 * s.step, 0.5 * s.step)),
        jnp.where(good, -0.5 * _dot(gradient, direction), s.decrement),
        curvature,
        steps,
        changes,
        weight,
        slot,
    )


def _inverse_hessian(q, steps, changes, weight, slot, hessian):
    """The two-loop recursion: the estimate of the inverse Hessian times q."""

    def newest_first(n, carry):
        q, alpha = carry
        i = (slot - 1 - n) % MEMORY
        alpha = alpha.at[i].set(weight[i] * _dot(steps[i], q))
        return q - alpha[i][None, :, None] * changes[i], alpha

    def oldest_first(n, r):
        i = (slot + n) % MEMORY
        return r + (alpha[i] - weight[i] * _dot(changes[i], r))[None, :, None] * steps[i]

    q, alpha = jax.lax.fori_loop(0, MEMORY, newest_first, (q, jnp.zeros_like(weight)))
    return jax.lax.fori_loop(0, MEMORY, oldest_first, q / hessian)


@jax.jit
def _narrow(s: _State, which: jax.Array) -> _State:
    """The state of some of the problems; their place is the last axis but one, or the last."""
    return _State(*(part if part.ndim == 0 else jnp.take(part, which, axis=-2 if part.ndim > 2 else -1) for part in s))
