"""Multinomial logistic regression on features, for several strengths of l2: scipy's L-BFGS-B on jax's gradients.

The objective is that of scikit-learn's LogisticRegression with C = 1 / l2 and an intercept that is not penalised:

    sum over rows of cross-entropy(x W + b, label)  +  l2 / 2 * ||W||^2

It is strictly convex in W, so that whoever minimises it gets the same classifier. Features are used as they are: see
`standardisation` for what the linear probe does to them before. What makes it fast, without changing the optimum:

- features are centred (the intercept takes it up) and turned into their principal axes (the penalty does not see
  it), where the Hessian of a softmax is nearly diagonal: variance_j / classes + l2. Weights are scaled by its root, so
  that the first steps of L-BFGS (Liu & Nocedal 1989) are nearly those of Newton;
- strengths are solved from the largest to the smallest, each from the solution of the nearest one that is known.

Rows go through in blocks, so memory beyond the features themselves is bounded.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
import scipy.optimize  # before the threads of its BLAS are counted
from threadpoolctl import threadpool_limits

MEMORY = 10  # pairs of L-BFGS
BLOCK_BYTES = 1 << 24  # logits of one block of rows: small enough for a cache
# What scipy minimises is the loss per row times this: below 1, its `ftol` would be absolute.
UNIT = 1e6
FINEST = 1e-8  # share of the loss below which a step follows the rounding of logits in float32


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


class Problem:
    """Features [N, D] with their labels [N], prepared once, solved for any l2. Classes are 0..classes-1."""

    def __init__(self, x_NxD: np.ndarray, label_N: np.ndarray, classes: int):
        x_NxD, self.classes = np.asarray(x_NxD, np.float32), classes
        self.rows, self.width = x_NxD.shape
        # A class without a row would push its intercept to -infinity; it is left out instead.
        self.present, label_N = np.unique(np.asarray(label_N), return_inverse=True)
        self.mean, self.axes, variance = principal_axes(x_NxD)
        blocks = -(-self.rows // max(256, BLOCK_BYTES // (4 * self.kept)))
        block = -(-self.rows // blocks)  # of equal size, so that less than a row a block is filled up
        fill = -self.rows % block
        x_NxK = np.zeros((self.rows + fill, self.width + 1), np.float32)  # rows that fill a block are all zero
        for start in range(0, self.rows, block):
            part = x_NxD[start : start + block]
            x_NxK[start : start + len(part), :-1] = (part - self.mean) @ self.axes
        x_NxK[: self.rows, -1] = 1
        put = partial(jax.device_put, device=jax.local_devices()[0])
        self._x = put(x_NxK.reshape(-1, block, self.width + 1))
        self._label = put(np.pad(label_N.astype(np.int32), (0, fill)).reshape(-1, block))
        self._variance = np.append(variance, 1)

    @property
    def kept(self) -> int:
        """Classes that have a row."""
        return len(self.present)

    def solve(
        self,
        l2_L: Sequence[float],
        *,
        start: Fit | None = None,
        tolerance: float = FINEST,
        iterations: int = 1000,
        tick: Callable[[int], None] = lambda n: None,
    ) -> Fit:
        """The minima for all strengths, in their order.

        tolerance: stop where an iteration lowers the value by less than this share of itself, FINEST at least (a
        share, because the loss of classes that can be told apart without a mistake tends to 0). iterations: at most,
        for each strength. start: solutions of other strengths of the same classes. tick(n): called as strengths are
        done. ValueError for strengths that are not positive.
        """
        l2_L = np.asarray(l2_L, np.float64)
        if not len(l2_L) or not np.all(np.isfinite(l2_L)) or l2_L.min() <= 0:
            raise ValueError(f"l2 must be positive and finite, got {l2_L.tolist()}")
        known = [] if start is None else [(l2, self._turned(start, n)) for n, l2 in enumerate(start.l2)]
        found: dict[int, tuple] = {}
        # scipy's own products are small: threads of its BLAS that wait for a busy core made them 25 times slower.
        with one_device(), threadpool_limits(1, user_api="blas"):
            for n in np.argsort(-l2_L, kind="stable"):
                near = min(known, key=lambda one: abs(np.log(one[0] / l2_L[n])), default=None)
                first = np.zeros((self.width + 1, self.kept)) if near is None else near[1]
                w_KxC, *rest = self._minimum(l2_L[n], first, tolerance, iterations)
                known.append((l2_L[n], w_KxC))
                found[n] = (*self._given(w_KxC), *rest)
                tick(1)
        return Fit(l2_L, *(np.array(parts) for parts in zip(*(found[n] for n in range(len(l2_L))))))

    def _minimum(self, l2: float, w_KxC: np.ndarray, tolerance: float, limit: int) -> tuple:
        """Weights on the principal axes, the intercept last [K, C]; the value, iterations, whether it converged."""
        penalty_K = np.append(np.full(self.width, l2 / self.rows), 0)
        scale_Kx1 = 1 / np.sqrt(self._variance / self.kept + penalty_K)[:, None]

        def value_and_gradient(v: np.ndarray) -> tuple[float, np.ndarray]:
            w_KxC = np.asarray(v.reshape(-1, self.kept) * scale_Kx1, np.float32)
            loss, slope_KxC = map(np.asarray, _loss(self._x, self._label, w_KxC))
            slope_KxC = slope_KxC / self.rows + penalty_K[:, None] * w_KxC
            value = loss.sum(dtype=np.float64) / self.rows + 0.5 * np.sum(penalty_K[:, None] * np.square(w_KxC))
            return UNIT * float(value), (UNIT * slope_KxC * scale_Kx1).ravel()

        options = dict(maxcor=MEMORY, ftol=max(tolerance, FINEST), gtol=0, maxiter=limit, maxfun=20 * limit)
        done = scipy.optimize.minimize(
            value_and_gradient, (w_KxC / scale_Kx1).ravel(), jac=True, method="L-BFGS-B", options=options
        )
        # Status 1: stopped at the limit; 2: the line search sees nothing but rounding.
        converged = done.status != 1 and bool(np.isfinite(done.fun))
        return done.x.reshape(-1, self.kept) * scale_Kx1, done.fun / UNIT, done.nit, converged

    def _turned(self, fit: Fit, n: int) -> np.ndarray:
        """The solution `n` on the principal axes [K, C]."""
        weights_DxC, bias_C = fit.weights[n][:, self.present], fit.bias[n][self.present]
        bias_C = np.where(np.isfinite(bias_C), bias_C, 0) + self.mean @ weights_DxC
        return np.concatenate([self.axes.T @ weights_DxC, bias_C[None]]).astype(np.float64)

    def _given(self, w_KxC: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Weights [D, classes] and bias [classes] for features as they were given."""
        weights_DxC = np.zeros((self.width, self.classes), np.float32)
        bias_C = np.full(self.classes, -np.inf, np.float32)
        weights_DxC[:, self.present] = self.axes @ w_KxC[:-1]
        bias_C[self.present] = w_KxC[-1] - self.mean @ weights_DxC[:, self.present]
        return weights_DxC, bias_C


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


@jax.jit
def _loss(x, label, w_KxC):
    """Cross-entropy of every row [blocks, B], and the gradient of their sum [K, C]. `x` [blocks, B, K]; `label`
    [blocks, B].

    The caller adds up the rows in float64: a sum in float32 is too coarse for the line search near the minimum.
    """

    def block(slope_KxC, part):
        x_BxK, label_B = part

        def loss(w_KxC):
            logit_BxC = jnp.matmul(x_BxK, w_KxC, precision=jax.lax.Precision.HIGHEST)
            loss_B = optax.softmax_cross_entropy_with_integer_labels(logit_BxC, label_B)
            loss_B = x_BxK[:, -1] * loss_B  # rows that fill the block count for nothing
            return loss_B.sum(), loss_B

        more_KxC, loss_B = jax.grad(loss, has_aux=True)(w_KxC)
        return slope_KxC + more_KxC, loss_B

    slope_KxC, loss = jax.lax.scan(block, jnp.zeros_like(w_KxC), (x, label))
    return loss, slope_KxC
