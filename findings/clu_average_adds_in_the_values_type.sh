#!/bin/sh
# clu.metrics.Average adds up in the type of its values: the average of bfloat16 losses falls the longer it runs.
#
# The count is an integer and the total has the dtype of what it was made from. A bfloat16 total stops growing at 256
# times what is added; from there on each batch raises the count alone. The mean of losses that are all 2.0 is then 0.5
# after 1,000 batches, and looks like a model that learns. In float16 the total is inf beyond 65,504. A start from
# Average.empty(), whose total is float32, helps (each batch's own sum is rounded all the same); a loop that starts
# from the metrics of its first batch does not have it, nor does reduce() of stacked metrics. Whoever computes in
# bfloat16 pays; cast values to float32 first.
#
# clu 0.0.12, jax 0.10.2, flax 0.12.8, numpy 2.4.6, Python 3.11.7, 2026-11-29, seen (64 values of 2.0 a batch):
#   bfloat16 by merge: 10 batches 2.000, 100 batches 2.000, 500 batches 1.023, 1000 batches 0.512
#   bfloat16, merged into empty(), 1000 batches: 2.000; float32, 1000 batches: 2.000; float16, 1000 batches: inf
#   bfloat16, reduce() of 1000 stacked batches: 0.512
# Fails if bfloat16 values are added up otherwise.
set -eu
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install -q --no-compile clu==0.0.12 jax==0.10.2 jaxlib==0.10.2 flax==0.12.8 numpy==2.4.6
JAX_PLATFORMS=cpu "$folder/venv/bin/python" - <<'PYTHON'
import jax
import jax.numpy as jnp
from clu.metrics import Average


def mean(dtype, batches, start=None):
    """The average over equal batches of 64 values of 2.0, merged one after the other."""
    found = start
    batch = Average.from_model_output(jnp.full(64, 2.0, dtype))
    for _ in range(batches):
        found = batch if found is None else found.merge(batch)
    assert found.count == 64 * batches
    return float(found.compute())


falling = {n: mean(jnp.bfloat16, n) for n in (10, 100, 500, 1000)}
empty = mean(jnp.bfloat16, 1000, Average.empty())
single, half = mean(jnp.float32, 1000), mean(jnp.float16, 1000)
stacked = jax.tree.map(lambda x: jnp.stack([x] * 1000), Average.from_model_output(jnp.full(64, 2.0, jnp.bfloat16)))
reduced = float(stacked.reduce().compute())
print("#   bfloat16 by merge: " + ", ".join(f"{n} batches {x:.3f}" for n, x in falling.items()))
print(f"#   bfloat16, merged into empty(), 1000 batches: {empty:.3f}; float32, 1000 batches: {single:.3f}; "
      f"float16, 1000 batches: {half:.3f}")
print(f"#   bfloat16, reduce() of 1000 stacked batches: {reduced:.3f}")
assert falling[10] == 2.0 and falling[500] < 1.2 and falling[1000] < 0.6
assert reduced < 0.6
assert empty == single == 2.0 and half == float("inf")
PYTHON
