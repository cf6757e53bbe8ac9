#!/bin/sh
# jax 0.12 on CPUs: the gradient by a weight in bfloat16 takes twenty times as long as the same product written the other
# way round, and is twelve times as inexact.
#
# For y = x @ w with x [B, T, D] jax's reverse mode multiplies [B, T, E] by [B, T, D] and transposes the [E, D] that comes
# out. XLA of this release has fast products (YNNPACK) for one of the orders; for the other a plain loop is left in
# bfloat16, whose sums are rounded to bfloat16 as they grow: 2 % of the gradient is error where rounding the result once
# makes 0.2 %. Half the products of a training step are of this kind. So a model in bfloat16, which is to be faster, is
# several times slower than under jax 0.10, where both orders are equal, and nothing says that it learns from worse
# gradients. Products of matrices [B T, D] are not concerned. A layer whose own gradient is lax.dot_general(x, dy, over
# the leading axes) has neither the transposition nor the loop.
#
# jax 0.12.0.1, numpy 2.4.6, Python 3.13.0, two cores of an AMD EPYC without AMX, other processes beside, 2026-11-30, seen:
#   float32: gradient as jax writes it 90 GFLOP/s, the other way round 161, forward 122; errors 6.5e-08 and 4.4e-07
#   bfloat16: gradient as jax writes it 12 GFLOP/s, the other way round 278, forward 166; errors 0.021 and 0.0017
#   (jax 0.10.2 there: bfloat16 86 and 104 GFLOP/s)
# Needs Python 3.12 or newer as PYTHON. Fails if the bfloat16 gradient takes less than 4 times as long, or is less than 4
# times as inexact.
set -eu
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
"${PYTHON:-python3}" -m venv "$folder/venv"
"$folder/venv/bin/pip" install -q --no-compile jax==0.12.0.1 jaxlib==0.12.0.1 numpy==2.4.6
JAX_PLATFORMS=cpu "$folder/venv/bin/python" - <<'PYTHON'
import time

import jax
import jax.numpy as jnp
import numpy as np

BATCH, TOKENS, WIDTH, HIDDEN = 16, 200, 768, 3072
drawn = np.random.default_rng(0)


def speed(function, *given):
    """GFLOP/s of the best of five calls."""
    call, took = jax.jit(function).lower(*given).compile(), []
    call(*given).block_until_ready()
    for _ in range(5):
        start = time.perf_counter()
        call(*given).block_until_ready()
        took.append(time.perf_counter() - start)
    return 2e-9 * BATCH * TOKENS * WIDTH * HIDDEN / min(took)


def as_jax_writes_it(x, w, dy):
    return jax.vjp(lambda w: x @ w, w)[1](dy)[0]


def the_other_way(x, dy):
    return jax.lax.dot_general(x, dy, (((0, 1), (0, 1)), ((), ())))


found = {}
for dtype in ("float32", "bfloat16"):
    x, w, dy = (
        jnp.asarray(drawn.standard_normal(shape), dtype)
        for shape in ((BATCH, TOKENS, WIDTH), (WIDTH, HIDDEN), (BATCH, TOKENS, HIDDEN))
    )
    exact = np.einsum("btd,bte->de", *(np.asarray(a, np.float32) for a in (x, dy)), optimize=True)
    errors = [
        float(np.linalg.norm(np.asarray(a, np.float32) - exact) / np.linalg.norm(exact))
        for a in (as_jax_writes_it(x, w, dy), the_other_way(x, dy))
    ]
    found[dtype] = [speed(as_jax_writes_it, x, w, dy), speed(the_other_way, x, dy), speed(jnp.matmul, x, w)]
    print(f"#   {dtype}: gradient as jax writes it {found[dtype][0]:.0f} GFLOP/s, the other way round {found[dtype][1]:.0f}, "
          f"forward {found[dtype][2]:.0f}; errors {errors[0]:.2g} and {errors[1]:.2g}")
slow, fast, _ = found["bfloat16"]
assert fast > 4 * slow and errors[0] > 4 * errors[1]
PYTHON
