#!/bin/sh
# libtpu: an array that is gathered along its middle axis lies so that cutting out an entry of its first takes 7 times
# as long as where the gathered axis comes first, for the same bytes.
#
# Rows of texts [131072, 512] in bfloat16 are split over 16 v5e chips. They are gathered once, and a loop takes every
# fourth row in each of four turns (as a contrast does whose logits do not fit at once). Arranged as [4, 32768, 512]
# before the gather, the compiler puts the gathered axis outermost in memory, layout {2,0,1}, so that the four parts lie
# interleaved in tiles of 2 x 128, and the cut takes 1.73 million cycles a turn. Arranged as [16, 4, 2048, 512], chips
# first, layout and tiles (8 x 128) are the usual ones, and it takes 0.23 million. The gather moves as many bytes. The
# product that the part is for takes 0.14 to 0.19 million: the cut of the first order is most of the loop. Whoever sends
# the columns of a large contrast once and works on parts of them should put the devices' axis first.
#
# Cycles are the compiler's own estimates (estimated_cycles of its text after code generation), on no TPU.
# jax 0.10.2, libtpu 0.0.52, numpy 2.4.6, Python 3.11.7, Linux x86_64, 2026-11-30, seen:
#   parts first:   bf16[1,32768,512]{2,0,1:T(2,128)(2,1)}, 1,734,272 cycles
#   devices first: bf16[16,1,2048,512]{3,2,1,0:T(8,128)(2,1)S(1)}, 234,512 cycles
# Fails if the first order costs less than 3 times the second.
set -eu
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install -q --no-compile jax==0.10.2 jaxlib==0.10.2 libtpu==0.0.52 numpy==2.4.6
cd "$folder"
JAX_PLATFORMS=cpu TPU_SKIP_MDS_QUERY=1 "$folder/venv/bin/python" - <<'PYTHON'
import re
import tempfile
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
from jax.experimental import topologies
from jax.sharding import Mesh, NamedSharding, PartitionSpec

CHIPS, PARTS, ROWS, WIDTH = 16, 4, 131072, 512
mesh = Mesh(np.array(topologies.get_topology_desc("v5e:4x4", "tpu").devices), ("data",))
split, whole = NamedSharding(mesh, PartitionSpec("data")), NamedSharding(mesh, PartitionSpec())


def contrast(devices_first, images, texts):
    """For each picture the log of the sum of exp over the texts of each part."""
    if devices_first:
        texts = texts.reshape(CHIPS, -1, PARTS, WIDTH).swapaxes(1, 2)
    else:
        texts = texts.reshape(-1, PARTS, WIDTH).swapaxes(0, 1)
    texts = jax.lax.with_sharding_constraint(texts, whole)

    def part(number):
        here = texts[:, number].reshape(-1, WIDTH) if devices_first else texts[number]
        return jax.nn.logsumexp(jnp.dot(images, here.T, preferred_element_type=jnp.float32), axis=1)

    return jax.lax.map(part, jnp.arange(PARTS))


def cut(devices_first):
    """(shape and layout, estimated cycles) of the cut in the compiled loop."""
    images = jax.ShapeDtypeStruct((8192, WIDTH), jnp.bfloat16, sharding=split)
    texts = jax.ShapeDtypeStruct((ROWS, WIDTH), jnp.bfloat16, sharding=split)
    lowered = jax.jit(lambda a, b: contrast(devices_first, a, b)).lower(images, texts)
    with tempfile.TemporaryDirectory() as dump:
        lowered.compile(compiler_options={"xla_dump_to": dump, "xla_dump_hlo_as_text": True})
        (file,) = Path(dump).glob("*after_codegen.txt")
        text = file.read_text()
    found = re.findall(r"%\S*dynamic-slice\S* = (bf16\S+) fusion\(.*estimated_cycles\":\"(\d+)", text)
    ((shape, cycles),) = found
    return shape, int(cycles)


(parts, slow), (devices, fast) = cut(False), cut(True)
print(f"#   parts first:   {parts}, {slow:,} cycles")
print(f"#   devices first: {devices}, {fast:,} cycles")
assert slow > 3 * fast
PYTHON
